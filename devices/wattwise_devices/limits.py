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

from wattwise_devices.kernel_text import natural, parse_cpu_list

_V1_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes a page-rounded 2^63 for "no limit"
_V2_MOUNTS = ("sys/fs/cgroup", "sys/fs/cgroup/unified")  # the second where systemd runs both versions at once


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimits:
    """Bytes. total: of the machine. available: free without swapping, now. limit: of the control group, or None.

    limit_cache: of limit_used, file pages that the kernel drops before it kills. allowed: the smallest of what these
    leave to one process; None if nothing is known.
    """

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None
    limit_used_bytes: int | None
    limit_cache_bytes: int | None = None

    @property
    def allowed_bytes(self) -> int | None:
        """How many more bytes a process may take before it swaps, or its group is killed."""
        known = [self.available_bytes] if self.available_bytes is not None else []
        if self.limit_bytes is not None:
            kept = (self.limit_used_bytes or 0) - (self.limit_cache_bytes or 0)
            known.append(max(0, self.limit_bytes - max(0, kept)))
        return min(known) if known else self.total_bytes


def memory_limits(root: Path = Path("/")) -> MemoryLimits:
    """Memory of the machine and of this process's control group (v1 or v2, the tightest ancestor)."""
    info = _meminfo(root / "proc/meminfo")
    limit, used, cache = _cgroup_memory(root)
    total = info.get("MemTotal")
    if total is None and root == Path("/"):
        total = _sysconf_total()
    if limit is not None and total is not None and limit >= total:
        limit, used, cache = None, None, None
    return MemoryLimits(
        total_bytes=total,
        available_bytes=info.get("MemAvailable"),
        limit_bytes=limit,
        limit_used_bytes=used,
        limit_cache_bytes=cache,
    )


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs this process may keep busy: affinity, rounded down by the control group's quota, at least 1."""
    count = os.process_cpu_count() if hasattr(os, "process_cpu_count") else None  # type: ignore[attr-defined]
    if count is None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cpu_quota(root)
    cpus = count or 1
    return max(1, min(cpus, math.floor(quota + 0.01)) if quota is not None else cpus)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that the tightest control group allows, 1.5 for one and a half. None: no cap."""
    groups, found = _groups(root), []
    for folder in _v2_folders(root, groups):
        quota, _, period = " ".join(_lines(folder / "cpu.max")).partition(" ")
        found.append(_share(natural(quota), natural(period)))  # "max 100000" is no quota
    for folder in _ancestors(root / "sys/fs/cgroup/cpu", groups.get("cpu", "/")):
        found.append(_share(_number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")))
    return min((share for share in found if share is not None), default=None)


def cgroup_cpuset(root: Path = Path("/")) -> tuple[int, ...]:
    """The CPUs that this process's own group may use, inherited limits included; () if it does not say."""
    groups = _groups(root)
    places = [(folder, "cpuset.cpus.effective") for folder in _v2_folders(root, groups)]
    for folder in _ancestors(root / "sys/fs/cgroup/cpuset", groups.get("cpuset", "/")):
        places += [(folder, "cpuset.effective_cpus"), (folder, "cpuset.cpus")]
    return next((cpus for folder, name in places if (cpus := parse_cpu_list("".join(_lines(folder / name))))), ())


def _meminfo(path: Path) -> dict[str, int]:
    values: dict[str, int] = {}
    for line in _lines(path):
        name, _, rest = line.partition(":")
        number = natural(" ".join(rest.split()[:1]))
        if number is not None:
            values[name] = number * 1024
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


def _share(quota_us: int | None, period_us: int | None) -> float | None:
    return quota_us / period_us if quota_us and period_us else None


def _v2_folders(root: Path, groups: dict[str, str]) -> list[Path]:
    return [folder for mount in _V2_MOUNTS for folder in _ancestors(root / mount, groups.get("", "/"))]


def _cgroup_memory(root: Path) -> tuple[int | None, int | None, int | None]:
    """(limit, used, droppable file pages) of the tightest group; Nones without a limit."""
    groups, found = _groups(root), []
    for folder in _v2_folders(root, groups):
        limit = _number(folder / "memory.max")
        if limit is not None:
            found.append((limit, _number(folder / "memory.current"), _file_pages(folder, "")))
    for folder in _ancestors(root / "sys/fs/cgroup/memory", groups.get("memory", "/")):
        limit = _number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < _V1_UNLIMITED_BYTES:
            found.append((limit, _number(folder / "memory.usage_in_bytes"), _file_pages(folder, "total_")))
    return min(found, key=lambda group: group[0] - (group[1] or 0) + (group[2] or 0), default=(None, None, None))


def _file_pages(folder: Path, prefix: str) -> int | None:
    """Cached file pages charged to a group and those below it. Pages of tmpfs and shared memory are not among them."""
    pairs = [line.split() for line in _lines(folder / "memory.stat")]
    names = {f"{prefix}active_file", f"{prefix}inactive_file"}
    known = [
        number for pair in pairs if len(pair) == 2 and pair[0] in names and (number := natural(pair[1])) is not None
    ]
    return sum(known) if known else None


def _number(path: Path) -> int | None:
    return natural(" ".join(_lines(path)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
