"""Stopping a computation that is already running inside native code.

llama.cpp asks an abort callback after every node of the graph, hundreds of times per token. A Python callback
would cost a good tenth of decode speed, so the callback is a native function, `ggml_is_empty`, which answers
whether a tensor has a zero dimension, and its argument is a block of our memory posing as a tensor: filled with
ones the tensor has elements (go on), filled with zeros it has none (stop). No offset inside ggml's struct is
assumed. Long computations run in a thread, while the caller's thread stays in Python: there it polls `cancelled()`
and takes Ctrl-C at once, which it could not while it was inside native code itself.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

_BLOCK_BYTES = 4096  # more than any ggml_tensor
POLL_SECONDS = 0.005


class AbortFlag:
    """A stop flag that native code can read without Python. Not shared between contexts."""

    def __init__(self, ggml: ctypes.CDLL, callback_type: Any) -> None:
        self._block = ctypes.create_string_buffer(b"\x01" * _BLOCK_BYTES, _BLOCK_BYTES)
        function = ggml["ggml_is_empty"]
        self.callback = ctypes.cast(function, callback_type)
        self.argument = ctypes.cast(self._block, ctypes.c_void_p)

    def set(self) -> None:
        """Ask the running computation to stop at its next node."""
        ctypes.memset(self._block, 0, _BLOCK_BYTES)

    def reset(self) -> None:
        """Let computations run."""
        ctypes.memset(self._block, 1, _BLOCK_BYTES)


class Watched:
    """Runs native calls in a thread of its own and stops them when the caller no longer wants them."""

    def __init__(self, flag: AbortFlag) -> None:
        self._flag = flag
        self._executor: ThreadPoolExecutor | None = None  # made on first use; one thread, so one OpenMP team

    def run(self, call: Callable[[], int], cancelled: Callable[[], bool] | None) -> int:
        """The call's answer. Never returns or raises while the call is still running.

        An exception here (Ctrl-C, or one from `cancelled`) stops the call, then goes on to the caller. Where
        `cancelled` is None nothing stops the call: Ctrl-C waits for its end.
        """
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="wattwise-compute")
        future = self._executor.submit(call)
        try:
            while not _finished(future):
                if cancelled is not None and cancelled():
                    self._flag.set()
            return future.result()
        finally:
            while not future.done():  # also when Ctrl-C is pressed again
                if cancelled is not None:
                    self._flag.set()
                with contextlib.suppress(KeyboardInterrupt):
                    _finished(future)
            self._flag.reset()

    def close(self) -> None:
        """End the thread; nothing is running in it."""
        if self._executor is not None:
            self._executor.shutdown()


def _finished(future: Future[int]) -> bool:
    """Wait a moment for the call to finish."""
    wait([future], timeout=POLL_SECONDS)
    return future.done()
