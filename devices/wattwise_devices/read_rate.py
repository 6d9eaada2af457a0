"""The sustained rate at which storage reads, past the page cache.

Direct I/O (O_DIRECT) on the model's file itself or on a temporary one: two readers with large aligned blocks, as
weight streaming does it. Where direct I/O is refused, cached pages are dropped first and the result says so. In a
virtual machine the host may still answer from its own memory; no guest can see that.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ReadMethod = Literal["direct", "dropped-cache", "uncached", "cached"]
_BLOCK_BYTES = 4 << 20
_READERS = 2
_SMALLEST_FILE_BYTES = 64 << 20  # below, a file says more about latency than about rate
_TEMPORARY_BYTES = 256 << 20
_WRITE_LIMIT_S = 4.0  # slow cards get a smaller temporary file
_F_NOCACHE = 48  # macOS, sys/fcntl.h


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRate:
    """method: "direct" (O_DIRECT), "dropped-cache" (posix_fadvise), "uncached" (macOS), "cached": an upper bound."""

    bytes_per_s: float
    method: ReadMethod
    read_bytes: int


def measure_read_rate(path: Path, *, limit_s: float = 1.5) -> ReadRate | None:
    """Of the storage below `path`: a large file is read itself, else a temporary one beside it. None if neither can."""
    try:
        with _readable(path) as file:
            return _measure(file, limit_s)
    except OSError:
        return None


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """A file of a useful size at that place; made for the occasion and removed again where there is none."""
    if path.is_file() and path.stat().st_size >= _SMALLEST_FILE_BYTES:
        yield path
        return
    folder = path if path.is_dir() else path.parent
    size = min(_TEMPORARY_BYTES, shutil.disk_usage(folder).free // 8)
    if size < 2 * _BLOCK_BYTES:
        raise OSError(f"no room for a temporary file in {folder}")
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".wattwise-rate-") as file:
        noise, began = os.urandom(_BLOCK_BYTES), time.monotonic()  # storage that compresses must not shine
        while file.tell() < size and (file.tell() < 2 * _BLOCK_BYTES or time.monotonic() - began < _WRITE_LIMIT_S):
            file.write(noise)
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def _measure(file: Path, limit_s: float) -> ReadRate:
    for method, opened in _ways(file):
        try:
            with opened() as handle:
                read, seconds = _read_for(handle, file.stat().st_size, limit_s, again=method in ("direct", "uncached"))
                return ReadRate(bytes_per_s=read / seconds, method=method, read_bytes=read)
        except OSError:
            if method == "cached":
                raise
    raise OSError(f"{file} cannot be read")


def _ways(file: Path) -> list[tuple[ReadMethod, Callable[[], contextlib.AbstractContextManager[int]]]]:
    """How to read past the cache, best first."""
    ways: list[tuple[ReadMethod, Callable[[], contextlib.AbstractContextManager[int]]]] = []
    if hasattr(os, "O_DIRECT"):
        ways.append(("direct", lambda: _opened(file, os.O_DIRECT)))
    if sys.platform == "darwin":
        ways.append(("uncached", lambda: _opened(file, 0, _without_cache)))
    if hasattr(os, "posix_fadvise"):
        ways.append(("dropped-cache", lambda: _opened(file, 0, _drop_cache)))
    ways.append(("cached", lambda: _opened(file, 0)))
    return ways


@contextlib.contextmanager
def _opened(file: Path, flags: int, prepare: Callable[[int], None] | None = None) -> Iterator[int]:
    handle = os.open(file, os.O_RDONLY | flags)
    try:
        if prepare is not None:
            prepare(handle)
        yield handle
    finally:
        os.close(handle)


def _read_block(handle: int, buffer: mmap.mmap, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(handle, [buffer], offset)
    if hasattr(os, "pread"):
        return len(os.pread(handle, _BLOCK_BYTES, offset))
    raise OSError("this system cannot read at a position")


def _drop_cache(handle: int) -> None:
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def _without_cache(handle: int) -> None:
    import fcntl

    fcntl.fcntl(handle, _F_NOCACHE, 1)


def _read_for(handle: int, size_bytes: int, limit_s: float, again: bool) -> tuple[int, float]:
    """(bytes, seconds) of reading whole blocks in order until the time is over, or once where a pass warms a cache."""
    blocks = size_bytes // _BLOCK_BYTES
    lock, position, totals, errors = threading.Lock(), iter(range(blocks if not again else 1 << 40)), [], []
    deadline = time.perf_counter() + limit_s

    def reader() -> None:
        buffer, count = mmap.mmap(-1, _BLOCK_BYTES), 0  # aligned to a page, as direct I/O wants it
        try:
            while time.perf_counter() < deadline:
                with lock:
                    block = next(position, None)
                if block is None:
                    break
                count += _read_block(handle, buffer, (block % blocks) * _BLOCK_BYTES)
        except OSError as error:
            errors.append(error)
        finally:
            totals.append(count)
            buffer.close()

    readers = [threading.Thread(target=reader) for _ in range(_READERS)]
    began = time.perf_counter()
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    seconds = time.perf_counter() - began
    if errors or not sum(totals):
        raise errors[0] if errors else OSError("nothing could be read")
    return sum(totals), seconds
