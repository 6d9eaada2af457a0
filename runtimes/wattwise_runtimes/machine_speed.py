"""How fast this machine is at this moment: a look of less than a tenth of a second, to scale rates measured earlier.

On a shared or throttled machine the same code runs at different speeds within the hour. Two figures: how fast cores
read from their own caches (falls when cores are shared or clocked down) and how fast all of them read memory (falls
when others use it). Each as the best moment and as the mean, which holds the moments when others ran. Not a benchmark
of the machine: `wattwise_devices.bandwidth` is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_CACHE_ELEMENTS = 32 << 10  # int64: 256 KiB, which every core's second-level cache holds
_CACHE_READS = 60  # at once: a quarter of a millisecond
_MEMORY_BYTES, _SLICE_BYTES = 64 << 20, 8 << 20
_LEAST_MEMORY_BYTES = 24 << 20  # less may lie in a cache and tell nothing about memory
_LOOK_S = 0.035


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """GB/s (1e9) read by `threads` threads together. cache_best: added up from each one's best moment. cache_mean and
    memory: over the look; memory is None where it was not measured."""

    threads: int
    cache_best_gb_s: float
    cache_mean_gb_s: float
    memory_gb_s: float | None = None

    def better(self, other: MachineSpeed) -> MachineSpeed:
        """The best of two looks in each figure."""

        memory = [m for m in (self.memory_gb_s, other.memory_gb_s) if m is not None]
        return MachineSpeed(
            threads=self.threads,
            cache_best_gb_s=max(self.cache_best_gb_s, other.cache_best_gb_s),
            cache_mean_gb_s=max(self.cache_mean_gb_s, other.cache_mean_gb_s),
            memory_gb_s=max(memory, default=None),
        )


def machine_speed(threads: int, *, memory_bytes: int = 0) -> MachineSpeed:
    """Measure now. memory_bytes: how much may be allocated for a moment; too little leaves memory out."""
    small = np.ones(_CACHE_ELEMENTS, np.int64)
    view = np.broadcast_to(small, (_CACHE_READS, _CACHE_ELEMENTS))
    cache_best, cache_mean = _rates([[view]] * threads)
    memory = None
    if memory_bytes >= _LEAST_MEMORY_BYTES:
        each = min(memory_bytes, _MEMORY_BYTES) // threads // 8
        step = min(each, _SLICE_BYTES // 8)
        arrays = [np.ones(each, np.int64) for _ in range(threads)]
        slices = [[a[i : i + step] for i in range(0, each - step + 1, step)] for a in arrays]
        _, memory = _rates(slices)
    return MachineSpeed(
        threads=threads,
        cache_best_gb_s=cache_best,
        cache_mean_gb_s=cache_mean,
        memory_gb_s=memory,
    )


def _rates(parts: Sequence[Sequence[np.ndarray]]) -> tuple[float, float]:
    """(best, mean) GB/s of one thread per entry, each reading its arrays in turn for a while."""
    start = threading.Barrier(len(parts))
    results = [(0.0, 0.0)] * len(parts)

    def work(place: int) -> None:
        start.wait()
        results[place] = _read(parts[place], time.perf_counter)

    workers = [threading.Thread(target=work, args=(place,)) for place in range(1, len(parts))]
    for worker in workers:
        worker.start()
    work(0)  # in the caller's thread, as engines compute: a new thread waits for its place on a busy machine
    for worker in workers:
        worker.join()
    return sum(best for best, _ in results), sum(mean for _, mean in results)


def _read(arrays: Sequence[np.ndarray], clock_s: Callable[[], float]) -> tuple[float, float]:
    best, total = 0.0, 0
    began = before = clock_s()
    while before - began < _LOOK_S:
        for array in arrays:
            np.max(array)  # bound by loads; releases the interpreter lock
            now = clock_s()
            nbytes = array.size * array.itemsize
            best = max(best, nbytes / max(1e-9, now - before))
            total += nbytes
            before = now
    return best / 1e9, total / (before - began) / 1e9
