"""Sampler: from logits to a token, and the exact distribution that it draws from.

The order is llama.cpp's: logit bias, penalties, DRY, top-k, typical, top-p, min-p, temperature, draw; or, with
Mirostat 2, bias, penalties, temperature, Mirostat's cut. `distribution` is pure; `accept` alone changes the state
(besides `sample`, which advances the random generator), so speculative decoding can look first and rewind.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattwise.sampling import penalties, truncation
from wattwise.sampling.params import SamplerParams
from wattwise_devices.errors import BackendError, PlanError

Distribution = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class SamplerState:
    """A moment to come back to: length of the history, generator, Mirostat's bound."""

    length: int
    generator: Any
    mu: float


class Sampler:
    """Draws tokens for one text.

    tokenizer: needed for DRY's sequence breakers only. seed: used where the params have none (None: fresh).
    history: tokens before the first draw (the prompt), which the penalties see.
    """

    def __init__(
        self,
        params: SamplerParams | None = None,
        tokenizer: Any = None,
        *,
        seed: int | None = None,
        history: Sequence[int] = (),
    ) -> None:
        self.params = params = params if params is not None else SamplerParams()
        chosen = params.seed if params.seed is not None else seed
        self._generator = np.random.Generator(np.random.PCG64(chosen))
        self._recent = penalties.RecentTokens(params.repeat_last_n) if penalties.uses_counts(params) else None
        self._breakers: penalties.Breakers = {}
        self._dry = penalties.uses_dry(params)
        if self._dry and params.dry_sequence_breakers:
            if tokenizer is None:
                raise PlanError("DRY with sequence breakers needs the tokenizer", ("dry_multiplier", "no tokenizer"))
            self._breakers = penalties.breakers_of(tokenizer, params.dry_sequence_breakers)
        self._bias_ids = np.fromiter(params.logit_bias.keys(), dtype=np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), dtype=np.float32)
        self._history: list[int] = []
        self._last: Distribution | None = None
        self._plain_greedy = params.temperature == 0 and params.typical_p >= 1
        self.reset(history)

    @property
    def history(self) -> tuple[int, ...]:
        """Tokens accepted so far, the initial ones included."""
        return tuple(self._history)

    def reset(self, history: Sequence[int] = ()) -> None:
        """Begin another text after these tokens. The generator goes on; Mirostat starts afresh."""
        self._history = [int(token) for token in history]
        self._mu = 2 * self.params.mirostat_tau
        self._last = None
        if self._recent is not None:
            self._recent.rebuild(self._history)

    def sample(self, logits: np.ndarray) -> int:
        """One token of `distribution(logits)`; follow it with `accept` if it is taken."""
        if self._plain_greedy:
            return self._likeliest(self._adjusted(logits))
        ids, chances = self.distribution(logits)
        if len(ids) == 1:
            return int(ids[0])
        reached = np.cumsum(chances)
        point = self._generator.random() * reached[-1]
        return int(ids[min(int(np.searchsorted(reached, point, side="right")), len(ids) - 1)])

    def distribution(self, logits: np.ndarray) -> Distribution:
        """(ids, probabilities) of the next token: int64 and float64, summing to 1; other tokens have none."""
        adjusted = self._adjusted(logits)
        if self._plain_greedy:
            return np.array([self._likeliest(adjusted)]), np.ones(1)
        params = self.params
        self._check(adjusted.max())
        if params.mirostat:
            ids, kept = truncation.surprise_cut(adjusted / np.float32(params.temperature), self._mu)
        else:
            ids, kept = self._truncated(adjusted)
            if params.temperature == 0:
                return ids[[int(np.argmax(kept))]], np.ones(1)
            kept = kept / np.float32(params.temperature)
        self._last = (ids, truncation.probabilities(kept, kept.max()))
        return self._last

    def accept(self, token: int) -> None:
        """The token is part of the text now."""
        token = int(token)
        if self.params.mirostat and self._last is not None:
            ids, chances = self._last
            place = np.flatnonzero(ids == token)
            if len(place):  # a token from elsewhere tells nothing about the draw
                surprise = -math.log2(chances[place[0]])
                self._mu -= self.params.mirostat_eta * (surprise - self.params.mirostat_tau)
        self._last = None
        self._history.append(token)
        if self._recent is not None:
            self._recent.accept(self._history)

    def state(self) -> SamplerState:
        """This moment, for `restore`."""
        return SamplerState(len(self._history), copy.deepcopy(self._generator.bit_generator.state), self._mu)

    def restore(self, state: SamplerState) -> None:
        """Back to an earlier moment of this text; what was drawn since is drawn again alike."""
        self.truncate(state.length)
        self._generator.bit_generator.state = state.generator
        self._mu = state.mu

    def truncate(self, length: int) -> None:
        """Forget the history after its first `length` tokens. The generator goes on."""
        if not 0 <= length <= len(self._history):
            raise ValueError(f"the history has {len(self._history)} tokens; cannot go back to {length}")
        del self._history[length:]
        self._last = None
        if self._recent is not None:
            self._recent.rebuild(self._history)

    def clone(self) -> Sampler:
        """An independent sampler in the same state."""
        twin = copy.copy(self)
        twin._history = list(self._history)
        twin._generator = copy.deepcopy(self._generator)
        twin._recent = copy.deepcopy(self._recent)
        return twin

    def _adjusted(self, logits: np.ndarray) -> np.ndarray:
        """Logits after bias and penalties; a copy if there are any."""
        logits = np.asarray(logits, dtype=np.float32)
        if logits.ndim != 1 or not len(logits):
            raise ValueError(f"logits of shape {logits.shape}; one row over the vocabulary is needed")
        if not (len(self._bias_ids) or self._dry or self._recent is not None):
            return logits
        logits = logits.copy()
        if len(self._bias_ids):
            self._add_bias(logits)
        if self._recent is not None:
            self._recent.apply(logits, self.params)
        if self._dry:
            for token, penalty in penalties.dry_penalties(self._history, self.params, self._breakers).items():
                if token < len(logits):
                    logits[token] -= np.float32(penalty)
        return logits

    def _add_bias(self, logits: np.ndarray) -> None:
        largest = int(self._bias_ids.max())
        if largest >= len(logits):
            raise PlanError(f"logit_bias names token {largest}; the vocabulary has {len(logits)} tokens")
        logits[self._bias_ids] += self._bias

    def _truncated(self, logits: np.ndarray) -> truncation.Candidates:
        params = self.params
        cut = params.top_p < 1 or params.min_p > 0
        if params.top_k > 0:
            candidates = truncation.top_k(logits, params.top_k)
        elif params.typical_p < 1:
            candidates = np.arange(len(logits)), logits
        elif params.top_p < 1:
            return truncation.nucleus(logits, params.top_p, params.min_p)
        elif params.min_p > 0:
            ids = np.flatnonzero(logits >= truncation.min_p_floor(logits.max(), params.min_p))
            return ids, logits[ids]
        else:
            return np.arange(len(logits)), logits
        is_sorted = True
        if params.typical_p < 1:
            candidates = truncation.typical(candidates, params.typical_p)
            is_sorted = False
        if cut:
            candidates = truncation.top_p_then_min_p(candidates, params.top_p, params.min_p, is_sorted=is_sorted)
        return candidates

    def _likeliest(self, logits: np.ndarray) -> int:
        best = int(np.argmax(logits))
        self._check(logits[best])
        return best

    def _check(self, peak: np.floating[Any]) -> None:
        if not math.isfinite(peak):
            raise BackendError(
                f"the logits after {len(self._history)} tokens cannot be drawn from: the largest is {peak}. The model "
                "or its weights are broken, or every token is forbidden by logit_bias."
            )
