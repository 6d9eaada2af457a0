"""The memory that loading leaves behind, put in order with madvise (Linux; elsewhere nothing happens).

- onnxruntime maps external data and keeps the mapping, even where it has packed the weights into memory of its own.
  `release` drops those pages; they are clean, and come back from the file if they are touched after all.
- Packed weights lie in small pages. Decode reads all of them for every token, and looking up their addresses took
  an eighth of its time. `collapse` moves full regions into huge pages (Linux 6.1 and later).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COLLAPSE = 25  # madvise: copy into huge pages now
_HUGE_BYTES = 2 << 20
_FULL = 0.95  # share of a region that must be resident: collapsing fills the rest
_DONTNEED = 4  # madvise: drop the pages; a private mapping that was never written to reads the file again


def can_release() -> bool:
    """Whether `release` does something on this system."""
    return sys.platform == "linux" and Path("/proc/self/smaps").exists()


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


def collapse() -> int:
    """Move full anonymous regions of this process into huge pages; bytes moved."""
    if not can_release():
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    moved = 0
    for start, stop in list(_full_regions()):
        for at in range(start, stop, 16 * _HUGE_BYTES):  # in steps: one page that cannot be moved ends a call
            size = min(16 * _HUGE_BYTES, stop - at)
            if libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), _COLLAPSE) == 0:
                moved += size
    return moved


def _clean_mappings(names: set[str]) -> Iterator[tuple[int, int]]:
    """Address ranges of mappings of these files without a page that this process has changed."""
    for region in _regions():
        if region.name in names and region.anonymous_bytes == 0:
            yield region.start, region.stop


def _full_regions() -> Iterator[tuple[int, int]]:
    """Huge-page-aligned ranges inside writable, anonymous, (nearly) wholly resident regions."""
    for region in _regions():
        size = region.stop - region.start
        start, stop = -(-region.start // _HUGE_BYTES) * _HUGE_BYTES, region.stop // _HUGE_BYTES * _HUGE_BYTES
        private = region.name in ("", "[heap]") and region.access.startswith("rw") and region.access.endswith("p")
        if private and stop - start >= _HUGE_BYTES and region.anonymous_bytes >= _FULL * size:
            yield start, stop


@dataclass(slots=True)
class _Region:
    start: int
    stop: int
    access: str
    name: str
    anonymous_bytes: int = 0


def _regions() -> list[_Region]:
    """This process's mappings, from /proc/self/smaps."""
    regions: list[_Region] = []
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            words = line.split(None, 5)
            a, _, b = first.partition("-")
            regions.append(_Region(int(a, 16), int(b, 16), words[1], words[5] if len(words) == 6 else ""))
        elif first == "Anonymous:":
            regions[-1].anonymous_bytes = int(rest.split()[0]) * 1024
    return regions
