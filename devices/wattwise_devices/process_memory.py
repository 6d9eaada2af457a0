"""Resident memory of this process: now, at its peak, and of which kind. Unknown is None, never 0.

Linux's /proc/self/status (https://docs.kernel.org/filesystems/proc.html); elsewhere only the peak, from getrusage.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentMemory:
    """Bytes. anonymous: pages that only this process holds. file: mapped file pages (the kernel can drop them)."""

    resident_bytes: int | None
    peak_bytes: int | None
    anonymous_bytes: int | None
    file_bytes: int | None


def resident_memory(status: Path = Path("/proc/self/status")) -> ResidentMemory:
    """Of this process, at this moment."""
    values: dict[str, int] = {}
    try:
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if name.startswith(("Vm", "Rss")) and words and words[0].isdigit():
                values[name] = int(words[0]) * 1024
    except OSError:
        return ResidentMemory(resident_bytes=None, peak_bytes=_getrusage_peak(), anonymous_bytes=None, file_bytes=None)
    return ResidentMemory(
        resident_bytes=values.get("VmRSS"),
        peak_bytes=values.get("VmHWM"),
        anonymous_bytes=values.get("RssAnon"),
        file_bytes=values.get("RssFile"),
    )


def reset_peak() -> bool:
    """Start a new peak from here (Linux, needs no rights for the own process). False where it cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _getrusage_peak() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others KiB
