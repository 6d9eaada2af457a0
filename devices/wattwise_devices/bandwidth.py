"""How fast this machine reads memory: the ceiling of every decode, measured beside each benchmark.

Threads read memory that is far larger than any cache, with a vectorised reduction that is bound by loads and leaves
the interpreter lock. numpy's large arrays lie in huge pages where the system has them, so this is the rate that
packed weights can reach; mapped files may stay below it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

_LEAST_BYTES, _MOST_BYTES = 256 << 20, 1 << 30
_CACHES = 4  # times the last cache, so that what stays in it counts little
_SHARE_OF_MEMORY = 8  # take at most this part of what is allowed


def read_bandwidth(threads: int, *, array_bytes: int = 192 << 20, repeats: int = 4) -> float:
    """Best sequential read rate over `repeats`, in GB/s (1e9), with `threads` threads at once."""
    arrays = [np.ones(array_bytes // 8, np.int64) for _ in range(threads)]
    return max(_read_once(arrays) for _ in range(repeats)) / 1e9


def read_rates(threads: Sequence[int], *, total_bytes: int, rounds: int = 6, limit_s: float = 3.0) -> dict[int, float]:
    """Best read rate in bytes per second for each number of threads, all of them reading the same `total_bytes`.

    The rounds go through all numbers in turn, so that a busy second does not hit one of them alone; after `limit_s`
    no further round begins.
    """
    words = np.ones(max(total_bytes // 8, max(threads)), np.int64)
    best = dict.fromkeys(threads, 0.0)
    began = time.perf_counter()
    for done in range(rounds):
        if done and time.perf_counter() - began > limit_s:
            break
        for count in threads:
            best[count] = max(best[count], _read_once(np.array_split(words, count)))
    return best


def measuring_bytes(last_cache_bytes: int | None, allowed_bytes: int | None) -> int:
    """How much memory to read: many times the last cache, but a small part of what this process may take."""
    wanted = min(max(_LEAST_BYTES, _CACHES * (last_cache_bytes or 0)), _MOST_BYTES)
    return wanted if allowed_bytes is None else max(1 << 20, min(wanted, allowed_bytes // _SHARE_OF_MEMORY))


def thread_counts(usable: int) -> tuple[int, ...]:
    """1 to `usable`; on large machines the low numbers, then steps, and always the last."""
    if usable <= 8:
        return tuple(range(1, max(1, usable) + 1))
    steps = [1, 2, 3, 4, 6, 8, *range(12, usable, max(4, usable // 8))]
    return tuple(sorted({*steps, usable}))


def _read_once(arrays: Sequence[np.ndarray]) -> float:
    """Bytes per second of one thread per array."""
    start = threading.Barrier(len(arrays) + 1)

    def read(array: np.ndarray) -> None:
        start.wait()
        np.max(array)  # releases the interpreter lock

    workers = [threading.Thread(target=read, args=(array,)) for array in arrays]
    for worker in workers:
        worker.start()
    start.wait()
    began = time.perf_counter()
    for worker in workers:
        worker.join()
    return sum(a.nbytes for a in arrays) / (time.perf_counter() - began)
