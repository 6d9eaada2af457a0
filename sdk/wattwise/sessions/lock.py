"""Locks between processes: a file that is locked while it is open, and free again whatever ends the process (flock)."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

from wattwise_devices.errors import SessionError

_LOOK_AGAIN_S = 0.01


class FileLock:
    """Held from `take` or `try_take` until `release`, the end of a `with`, or the end of the object or the process."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._close = weakref.finalize(self, os.close, handle)

    @classmethod
    def try_take(cls, path: Path) -> FileLock | None:
        """The lock, or None if somebody has it, perhaps in this process. OSError where no file can be made."""
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            lock = cls(path, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.release()
                return None
            except OSError:
                lock.release()
                raise
            if _is_file(handle, path):
                return lock
            lock.release()  # deleted between opening and locking: what we hold is nobody's any more

    @classmethod
    def take(cls, path: Path, *, wait_s: float) -> FileLock:
        """The lock, waited for. Raises SessionError after so many seconds, OSError as `try_take`."""
        deadline = time.monotonic() + wait_s
        while (lock := cls.try_take(path)) is None:
            if time.monotonic() > deadline:
                raise SessionError(f"another process has held {path} for {wait_s:g} s; try again when it is done")
            time.sleep(_LOOK_AGAIN_S)
        return lock

    def release(self) -> None:
        """Give it back. Idempotent."""
        self._close()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _is_file(handle: int, path: Path) -> bool:
    """Whether this open file is the one that is at `path` now."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
