"""Penalties on tokens that were used before: repetition, frequency, presence, and DRY.

They look at the history alone and touch only the logits of tokens that stand in it. DRY is p-e-w's method
(https://github.com/oobabooga/text-generation-webui/pull/5677) as llama.cpp computes it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from wattwise.sampling.params import SamplerParams

_LOG_FLOAT_MAX = 88.7228391
_MAX_TAIL = 20

Breakers = Mapping[int, tuple[tuple[int, ...], ...]]


class RecentTokens:
    """How often each of the last n tokens occurs (n = -1: of all)."""

    def __init__(self, last_n: int) -> None:
        self.last_n = last_n
        self._counts: Counter[int] = Counter()

    def rebuild(self, history: Sequence[int]) -> None:
        """Count afresh."""
        window = history if self.last_n < 0 else history[max(0, len(history) - self.last_n) :]
        self._counts = Counter(window)

    def accept(self, history: Sequence[int]) -> None:
        """The history has grown by one token."""
        self._counts[history[-1]] += 1
        if 0 <= self.last_n < len(history):
            old = history[-1 - self.last_n]
            self._counts[old] -= 1
            if not self._counts[old]:
                del self._counts[old]

    def apply(self, logits: np.ndarray, params: SamplerParams) -> None:
        """Change the logits of the counted tokens in place."""
        size = len(self._counts)
        if not size:
            return
        ids = np.fromiter(self._counts.keys(), dtype=np.int64, count=size)
        counts = np.fromiter(self._counts.values(), dtype=np.float32, count=size)
        known = ids < len(logits)
        if not known.all():
            ids, counts = ids[known], counts[known]
        penalty = np.float32(params.repeat_penalty)
        values = logits[ids]
        values = np.where(values <= 0, values * penalty, values / penalty)
        values -= counts * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
        logits[ids] = values


def uses_counts(params: SamplerParams) -> bool:
    """Whether one of the three simple penalties is on."""
    changed = params.repeat_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
    return changed and params.repeat_last_n != 0


def uses_dry(params: SamplerParams) -> bool:
    """Whether DRY is on."""
    return params.dry_multiplier != 0 and params.dry_penalty_last_n != 0


def dry_penalties(history: Sequence[int], params: SamplerParams, breakers: Breakers) -> dict[int, float]:
    """What DRY takes from the logit of each token that would prolong a repeated text."""
    last_n = len(history) if params.dry_penalty_last_n < 0 else params.dry_penalty_last_n
    recent = np.asarray(history[max(0, len(history) - last_n) :], dtype=np.int64)[::-1]  # newest first
    if len(recent) <= params.dry_allowed_length:
        return {}
    limit = _since_breaker(recent, breakers)
    if limit < params.dry_allowed_length:
        return {}
    largest = int(_LOG_FLOAT_MAX / math.log(params.dry_base)) if params.dry_base > 1.000001 else 0
    # Beyond this length the penalty does not grow any more, so no longer match needs to be told apart.
    cap = min(limit, params.dry_allowed_length + largest) if largest else limit
    longest: dict[int, int] = {}
    for token, length in _repeats(recent, params.dry_allowed_length, cap):
        if longest.get(token, -1) < length:
            longest[token] = length
    return {
        token: params.dry_multiplier * params.dry_base ** (length - params.dry_allowed_length)
        for token, length in longest.items()
        if () not in breakers.get(token, ())
    }


def _since_breaker(recent: np.ndarray, breakers: Breakers) -> int:
    """How many of the newest tokens stand after the last sequence breaker."""
    if not breakers:
        return len(recent)
    for i, token in enumerate(recent.tolist()):
        lengths = [
            len(tail)
            for tail in breakers.get(token, ())
            if len(tail) <= i and all(tail[j] == recent[i - j - 1] for j in range(len(tail)))
        ]
        if lengths:
            return i - max(lengths)
    return len(recent)


def _repeats(recent: np.ndarray, least: int, cap: int) -> list[tuple[int, int]]:
    """(next token, length) for every earlier place where the newest tokens stand too, lengths from least to cap."""
    size = len(recent)
    alive = np.arange(1, size)  # a place k: recent[j] == recent[j + k] so far
    found: list[tuple[int, int]] = []
    for length in range(cap + 1):
        inside = alive + length < size
        same = np.zeros(len(alive), dtype=bool)
        if length < cap:
            same[inside] = recent[alive[inside] + length] == recent[length]
        if length >= least:
            found.extend((token, length) for token in recent[alive[~same] - 1].tolist())
        alive = alive[same]
        if not len(alive):
            break
    return found


@lru_cache(maxsize=8)
def breakers_of(tokenizer: Any, texts: tuple[str, ...]) -> Breakers:
    """Tokens at which a breaker begins, with the tokens that must follow: () where the token holds it whole.

    tokenizer: vocab_size, token_bytes, token_text, is_special, encode.
    """
    out: dict[int, set[tuple[int, ...]]] = {}
    for token in range(tokenizer.vocab_size):
        word = tokenizer.token_bytes(token) or tokenizer.token_text(token).encode("utf-8", "replace")
        for text in texts:
            for tail in _tails(word, text.encode("utf-8", "replace"), tokenizer):
                out.setdefault(token, set()).add(tail)
    return {token: tuple(sorted(tails)) for token, tails in out.items()}


def _tails(word: bytes, breaker: bytes, tokenizer: Any) -> list[tuple[int, ...]]:
    if breaker in word:
        return [()]
    tails = []
    for size in range(1, min(len(breaker), len(word) + 1)):
        if word.endswith(breaker[:size]):
            rest = breaker[size:].decode("utf-8", "ignore")
            tails.append(tuple(tokenizer.encode(rest)[:_MAX_TAIL]))
    return tails
