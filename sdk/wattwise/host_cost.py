"""What a reply costs beside the engine: sampling, text and bookkeeping per token, measured through the real loop.

An engine that computes nothing hands out random logits; what is left of the time is ours. Grows with the vocabulary,
so two sizes are measured. Default sampling settings: penalties and the like cost more, greedy less.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattwise.generation import Generation, Request
from wattwise.prefix import HeldPrefix
from wattwise.sampling import Sampler, SamplerParams
from wattwise.stats import Stats
from wattwise_runtimes.contracts import Batch
from wattwise_runtimes.text.tokenizer import Tokenizer
from wattwise_runtimes.text.vocabulary import BYTE_SPELLING, NORMAL, Vocabulary

_SIZES = (256, 32768)
_TOKENS, _REPEATS = 48, 3
_CLEARED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCost:
    """Seconds per token: fixed_s + vocabulary size x per_entry_s."""

    fixed_s: float
    per_entry_s: float

    def token_s(self, vocab: int) -> float:
        """Of one token for a vocabulary of that size."""
        return self.fixed_s + vocab * self.per_entry_s


def measure_host_cost() -> HostCost:
    """A quarter of a second."""
    small, large = (_seconds_per_token(size) for size in _SIZES)
    per_entry_s = max(0.0, (large - small) / (_SIZES[1] - _SIZES[0]))
    return HostCost(fixed_s=max(0.0, small - per_entry_s * _SIZES[0]), per_entry_s=per_entry_s)


def _seconds_per_token(vocab: int) -> float:
    tokenizer = Tokenizer(
        Vocabulary(
            model="bpe",
            tokens=(*(BYTE_SPELLING[b] for b in range(256)), *(f"w{i}" for i in range(vocab - 256))),
            kinds=(NORMAL,) * vocab,
            pre="gpt-2",
            add_space_prefix=False,
        )
    )
    engine: Any = _SilentEngine(vocab)
    seconds = []
    for _ in range(_REPEATS):
        request = Request(
            prompt=[1, 2, 3], sampler=Sampler(SamplerParams(), seed=1), eog_ids=frozenset(), max_tokens=_TOKENS
        )
        generation = Generation(engine, HeldPrefix(engine), tokenizer, request, Stats())
        engine.kv.length, engine.spent_s = 0, 0.0
        began = time.process_time()  # one thread's work: what others do at the same time does not count
        for _piece in generation:
            pass
        seconds.append((time.process_time() - began - engine.spent_s) / _TOKENS)
    return statistics.median(seconds)


class _SilentEngine:
    """Hands out prepared logits, and clears the caches as a model's weights do: our code runs slower after that."""

    def __init__(self, vocab: int) -> None:
        self._logits = 3 * np.random.default_rng(0).standard_normal((8, 1, vocab), np.float32)
        self._weights = np.ones(_CLEARED_BYTES // 8, np.int64)
        self.kv = _SilentKV()
        self.spent_s = 0.0
        self._calls = 0

    def forward(self, batch: Batch, cancelled: Any = None) -> np.ndarray:
        began = time.process_time()
        np.max(self._weights)
        self.kv.length += len(batch.tokens)
        self.spent_s += time.process_time() - began
        self._calls += 1
        return self._logits[self._calls % len(self._logits)]


class _SilentKV:
    capacity_tokens, nbytes, length, next_position = 1 << 20, 0, 0, 0

    def truncate(self, position: int) -> None:
        self.length = position

    def clear(self) -> None:
        self.length = 0
