"""What native code says, turned into Python logging: nothing from llama.cpp reaches the terminal by itself.

Lines go to the logger `wattwise.llamacpp`, silent unless the program configures logging. The last lines are kept,
because a native failure is a null pointer and its reason stands only in the log; while a `Capture` is active all
lines are kept, because buffer sizes and buffer types stand there too (see `memory.py`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

LOGGER = logging.getLogger("wattwise.llamacpp")
LOGGER.addHandler(logging.NullHandler())

_DEBUG, _INFO, _WARN, _ERROR, _CONTINUED = 1, 2, 3, 4, 5  # ggml_log_level
_LEVELS = {_DEBUG: logging.DEBUG, _INFO: logging.INFO, _WARN: logging.WARNING, _ERROR: logging.ERROR}

_recent: deque[str] = deque(maxlen=40)  # warnings and errors
_captures: list[Capture] = []
_expected: list[str] = []  # parts of lines that are no news
_attach: list[Callable[[], None]] = []  # what makes native code speak to `receive`; empty before it is loaded
_one_at_a_time = threading.RLock()


class Capture:
    """Context manager that collects every native log line, for reading sizes and evidence out of them.

    One thread at a time: the log does not say which model a line is about. Whoever else uses the library in this
    process may have given it another listener (llama_cpp.Llama does), so ours is put back first.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __enter__(self) -> Capture:
        _one_at_a_time.acquire()
        for attach in _attach:
            attach()
        _captures.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _captures.remove(self)
        _one_at_a_time.release()


def listen_by(attach: Callable[[], None]) -> None:
    """From now on `attach` makes native code speak to `receive`; it is called at once, and before every capture."""
    _attach[:] = [attach]
    attach()


def receive(level: int, text: bytes | None, _data: Any = None) -> None:
    """The native log callback. Never raises: there is no Python frame above it that could catch."""
    try:
        line = (text or b"").decode("utf-8", "replace").rstrip("\n")
        if not line or (level == _CONTINUED and set(line) <= {"."}):
            return
        if any(part in line for part in _expected):
            return
        for capture in _captures:
            capture.lines.append(line)
        if level in (_WARN, _ERROR):
            _recent.append(line)
        if LOGGER.isEnabledFor(_LEVELS.get(level, logging.DEBUG)):
            LOGGER.log(_LEVELS.get(level, logging.DEBUG), "%s", line)
    except Exception:  # a broken handler must not unwind through native frames
        return


@contextlib.contextmanager
def expecting(part: str) -> Iterator[None]:
    """While active, lines that contain this are dropped: what they complain of is done on purpose."""
    _expected.append(part)
    try:
        yield
    finally:
        _expected.remove(part)


def forget_recent() -> None:
    """Start a new operation: what was said before does not explain its failure."""
    _recent.clear()


def last_words(limit: int = 4) -> str:
    """The newest warnings and errors as one line for an error message, or a note that there were none."""
    lines = list(_recent)[-limit:]
    return "; ".join(lines) if lines else "llama.cpp gave no reason"
