"""How fast this machine reads memory: the ceiling of every decode, measured beside each benchmark.

One thread per core reads its own array, larger than any cache, with a vectorised reduction that is bound by loads.
"""

from __future__ import annotations

import threading
import time

import numpy as np


def read_bandwidth(threads: int, *, array_bytes: int = 192 << 20, repeats: int = 4) -> float:
    """Best sequential read rate over `repeats`, in GB/s (1e9), with `threads` threads at once."""
    arrays = [np.ones(array_bytes // 8, np.int64) for _ in range(threads)]
    best = 0.0
    for _ in range(repeats):
        start = threading.Barrier(threads + 1)

        def read(array: np.ndarray, start: threading.Barrier = start) -> None:
            start.wait()
            np.max(array)  # releases the interpreter lock

        workers = [threading.Thread(target=read, args=(array,)) for array in arrays]
        for worker in workers:
            worker.start()
        start.wait()
        began = time.perf_counter()
        for worker in workers:
            worker.join()
        best = max(best, sum(a.nbytes for a in arrays) / (time.perf_counter() - began) / 1e9)
    return best
