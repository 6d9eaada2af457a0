"""Stopping a computation that is already running inside native code.

llama.cpp asks an abort callback after every node of the graph, hundreds of times per token. A Python callback
would cost a good tenth of decode speed, so the callback is a native function, `ggml_is_empty`, which answers
whether a tensor has a zero dimension, and its argument is a block of our memory posing as a tensor: filled with
ones the tensor has elements (go on), filled with zeros it has none (stop). No offset inside ggml's struct is
assumed. A thread of ours watches the caller's `cancelled()` while a long computation runs, and empties the tensor.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
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


class Watch:
    """While active, polls `cancelled` from a thread and sets the flag when it turns true.

    An exception from `cancelled` also stops the computation; it is raised again on leaving.
    """

    def __init__(self, flag: AbortFlag, cancelled: Callable[[], bool]) -> None:
        self._flag, self._cancelled = flag, cancelled
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="wattwise-cancel-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._flag.reset()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._done.wait(POLL_SECONDS):
                if self._cancelled():
                    self._flag.set()
                    return
        except BaseException as error:
            self._error = error
            self._flag.set()
