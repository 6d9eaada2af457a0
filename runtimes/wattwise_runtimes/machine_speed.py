"""How fast this machine is at this moment: a look of some ten milliseconds, to scale rates measured earlier.

On a shared or throttled machine the same code runs at different speeds within the hour. Two figures: how fast cores
read from their own caches (falls when cores are shared or clocked down) and how fast all of them read memory (falls
when others use it). Not a benchmark of the machine: `wattwise_devices.bandwidth` is.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np

from wattwise_devices.bandwidth import read_bandwidth

_CACHE_ELEMENTS = 32 << 10  # int64: 256 KiB, which every core's second-level cache holds
_CACHE_READS, _CACHE_REPEATS = 60, 3
_MEMORY_BYTES, _MEMORY_REPEATS = 64 << 20, 2
_LEAST_MEMORY_BYTES = 24 << 20  # less may lie in a cache and tell nothing about memory


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """GB/s (1e9) read by `threads` threads at once; memory None if it was not measured."""

    threads: int
    cache_gb_s: float
    memory_gb_s: float | None = None

    def mean(self, other: MachineSpeed) -> MachineSpeed:
        """Between two looks."""
        both = (self.memory_gb_s, other.memory_gb_s)
        return MachineSpeed(
            threads=self.threads,
            cache_gb_s=(self.cache_gb_s + other.cache_gb_s) / 2,
            memory_gb_s=None if both[0] is None or both[1] is None else (both[0] + both[1]) / 2,
        )


def machine_speed(threads: int, *, memory_bytes: int = 0) -> MachineSpeed:
    """Measure now. memory_bytes: how much may be allocated for a moment; too little leaves memory out."""
    memory = None
    if memory_bytes >= _LEAST_MEMORY_BYTES:
        each = min(memory_bytes, _MEMORY_BYTES) // threads
        memory = read_bandwidth(threads, array_bytes=each, repeats=_MEMORY_REPEATS)
    return MachineSpeed(threads=threads, cache_gb_s=_cache_rate(threads), memory_gb_s=memory)


def _cache_rate(threads: int) -> float:
    """GB/s of reads that stay in each core's cache; the best of a few."""
    shape = (_CACHE_READS, _CACHE_ELEMENTS)
    views = [np.broadcast_to(np.ones(_CACHE_ELEMENTS, np.int64), shape) for _ in range(threads)]
    best = 0.0
    for _ in range(_CACHE_REPEATS):
        start = threading.Barrier(threads + 1)

        def read(view: np.ndarray, start: threading.Barrier = start) -> None:
            start.wait()
            np.max(view)  # releases the interpreter lock

        workers = [threading.Thread(target=read, args=(view,)) for view in views]
        for worker in workers:
            worker.start()
        start.wait()
        began = time.perf_counter()
        for worker in workers:
            worker.join()
        best = max(best, sum(view.size * 8 for view in views) / (time.perf_counter() - began) / 1e9)
    return best
