"""Checked reading of untrusted binary files: a cursor that never goes past the end, and how files are opened.

Everything that a file says about itself (a count, a length, an offset) is compared with the bytes that are really
there before anything is allocated for it. Failures are `CorruptArtifact` with the field, the value and the limit.
Python's integers do not overflow, so products of hostile sizes are exact; only comparing them is needed.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from wattwise_devices.errors import CorruptArtifact, LoadError

Data = bytes | mmap.mmap

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def regular_file_size(path: Path) -> int:
    """Size in bytes of an ordinary file; LoadError for anything else (a pipe would block, a folder cannot be read)."""
    try:
        info = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise LoadError(f"{path} cannot be opened: {reason}. Check the path.") from error
    if not stat.S_ISREG(info.st_mode):
        kind = "a folder" if stat.S_ISDIR(info.st_mode) else "not an ordinary file"
        raise LoadError(f"{path} is {kind}; expected a file. Check the path.")
    return info.st_size


@contextmanager
def mapped(path: Path, *, least_bytes: int = 1) -> Iterator[Data]:
    """The whole file as read-only memory, mapped, so that only the pages looked at are read."""
    size = regular_file_size(path)
    if size < least_bytes:
        raise CorruptArtifact(path, "file size in bytes", size, f"at least {least_bytes}")
    try:
        with open(path, "rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {error}.") from error
    try:
        yield view
    finally:
        view.close()


def read_range(path: Path, start: int, length: int, field: str) -> bytes:
    """Exactly `length` bytes from `start`; CorruptArtifact if the file has become shorter since it was checked."""
    return read_array(path, start, length, field).tobytes()


def read_array(path: Path, start: int, length: int, field: str) -> np.ndarray:
    """The same as a new uint8 array, for large ranges: nothing is copied."""
    data = np.empty(length, np.uint8)
    done = 0
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            view = data.data
            while done < length:  # one call may read less (Linux stops at 2 GiB)
                count = file.readinto(view[done:])
                if not count:
                    break
                done += count
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error}.") from error
    if done != length:
        raise CorruptArtifact(path, field, f"{done} bytes read", f"{length} bytes from {start}")
    return data


class Cursor:
    """A position in a buffer. Every read is checked against `end`; `left` is what remains."""

    __slots__ = ("data", "end", "path", "position")

    def __init__(self, data: Data, path: Path, position: int = 0, end: int | None = None) -> None:
        self.data, self.path, self.position = data, path, position
        self.end = len(data) if end is None else end

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return self.end - self.position

    def need(self, length: int, field: str) -> None:
        """Refuse if fewer than `length` bytes remain."""
        if length > self.end - self.position:
            raise CorruptArtifact(
                self.path, field, f"{length} bytes", f"at most the {self.left} bytes left at offset {self.position}"
            )

    def take(self, length: int, field: str) -> bytes:
        """The next `length` bytes."""
        self.need(length, field)
        start = self.position
        self.position = start + length
        return self.data[start : start + length]

    def u32(self, field: str) -> int:
        """Unsigned 32-bit little-endian."""
        self.need(4, field)
        self.position += 4
        return _U32.unpack_from(self.data, self.position - 4)[0]

    def u64(self, field: str) -> int:
        """Unsigned 64-bit little-endian."""
        self.need(8, field)
        self.position += 8
        return _U64.unpack_from(self.data, self.position - 8)[0]

    def count(self, field: str, *, item_bytes: int, limit: int) -> int:
        """A 64-bit count of items of at least `item_bytes` each: at most `limit`, and all must fit what is left."""
        count = self.u64(field)
        fits = self.left // item_bytes
        if count > min(limit, fits):
            why = f"at most {limit}" if limit <= fits else f"at most {fits} ({self.left} bytes are left in the file)"
            raise CorruptArtifact(self.path, field, count, why)
        return count

    def fail(self, field: str, value: object, limit: object) -> CorruptArtifact:
        """The error to raise for this file."""
        return CorruptArtifact(self.path, field, value, limit)
