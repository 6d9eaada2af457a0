"""Gives back the pages of weight files that loading has read and running will not need again (Linux).

onnxruntime maps external data and keeps the mapping, even where it has packed the weights into memory of its own.
The pages are clean and come back from the file if they are touched after all.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_DONTNEED = 4  # madvise: drop the pages; a private mapping that was never written to reads the file again


def can_release() -> bool:
    """Whether `release` does something on this system."""
    return sys.platform == "linux" and Path("/proc/self/maps").exists()


def release(files: tuple[Path, ...]) -> int:
    """Drop the resident pages of all unwritten mappings of these files; bytes of the mappings."""
    if not can_release() or not files:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    released = 0
    for start, stop in list(_clean_mappings({str(f.resolve()) for f in files})):
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _DONTNEED) == 0:
            released += stop - start
    return released


def _clean_mappings(names: set[str]) -> Iterator[tuple[int, int]]:
    """Address ranges of mappings of these files without a page that this process has changed."""
    current: tuple[int, int] | None = None
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            words = line.split(None, 5)
            a, _, b = first.partition("-")
            current = (int(a, 16), int(b, 16)) if len(words) == 6 and words[5] in names else None
        elif current is not None and first == "Anonymous:":
            if int(rest.split()[0]) == 0:
                yield current
            current = None
