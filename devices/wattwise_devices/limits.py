"""What this process may use: memory and CPUs, from the machine, its control groups and its affinity.

Reads Linux's /proc and /sys through an injectable root, so tests run on recorded trees. On other systems the
machine's totals are used and the limits are absent. Never raises: unknown is None.
Formats: https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

_V1_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes a page-rounded 2^63 for "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimits:
    """Bytes. total: of the machine. available: free without swapping, now. limit: of the control group, or None.

    allowed: the smallest of what these leave to one process; None if nothing is known.
    """

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None
    limit_used_bytes: int | None

    @property
    def allowed_bytes(self) -> int | None:
        """How many more bytes a process may take before it swaps, or its group is killed."""
        known = [self.available_bytes] if self.available_bytes is not None else []
        if self.limit_bytes is not None:
            known.append(max(0, self.limit_bytes - (self.limit_used_bytes or 0)))
        return min(known) if known else self.total_bytes


def memory_limits(root: Path = Path("/")) -> MemoryLimits:
    """Memory of the machine and of this process's control group (v1 or v2, the tightest ancestor)."""
    info = _meminfo(root / "proc/meminfo")
    limit, used = _cgroup_memory(root)
    total = info.get("MemTotal")
    if total is None and root == Path("/"):
        total = _sysconf_total()
    if limit is not None and total is not None and limit >= total:
        limit, used = None, None
    return MemoryLimits(
        total_bytes=total, available_bytes=info.get("MemAvailable"), limit_bytes=limit, limit_used_bytes=used
    )


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs this process may keep busy: affinity, rounded down by the control group's quota, at least 1."""
    count = os.process_cpu_count() if hasattr(os, "process_cpu_count") else None  # type: ignore[attr-defined]
    if count is None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cgroup_cpu_quota(root)
    cpus = count or 1
    return max(1, min(cpus, math.floor(quota + 0.01)) if quota is not None else cpus)


def _meminfo(path: Path) -> dict[str, int]:
    values: dict[str, int] = {}
    for line in _lines(path):
        name, _, rest = line.partition(":")
        number = rest.split()
        if number and number[0].isdigit():
            values[name] = int(number[0]) * 1024
    return values


def _sysconf_total() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _groups(root: Path) -> dict[str, str]:
    """Controller name ("" for v2) -> path of this process's group."""
    groups: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                groups[controller] = parts[2]
    return groups


def _ancestors(base: Path, group: str) -> list[Path]:
    """Folder of the group and of each ancestor under base. Inside a container the group's own path may be absent."""
    parts = [p for p in group.split("/") if p and p != ".."]
    folders = [base.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]
    return [f for f in folders if f.is_dir()]


def _cgroup_memory(root: Path) -> tuple[int | None, int | None]:
    """(limit, used) of the tightest group; (None, None) without a limit."""
    groups, found = _groups(root), []
    for folder in _ancestors(root / "sys/fs/cgroup", groups.get("", "/")):
        limit = _number(folder / "memory.max")
        if limit is not None:
            found.append((limit, _number(folder / "memory.current")))
    for folder in _ancestors(root / "sys/fs/cgroup/memory", groups.get("memory", "/")):
        limit = _number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < _V1_UNLIMITED_BYTES:
            found.append((limit, _number(folder / "memory.usage_in_bytes")))
    return min(found, key=lambda pair: pair[0] - (pair[1] or 0), default=(None, None))


def _cgroup_cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the tightest group allows."""
    groups, found = _groups(root), []
    for folder in _ancestors(root / "sys/fs/cgroup", groups.get("", "/")):
        words = " ".join(_lines(folder / "cpu.max")).split()
        if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
            found.append(int(words[0]) / int(words[1]))
    for folder in _ancestors(root / "sys/fs/cgroup/cpu", groups.get("cpu", "/")):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            found.append(quota / period)
    return min(found, default=None)


def _number(path: Path) -> int | None:
    text = " ".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
