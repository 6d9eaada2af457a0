"""The processor's caches, each instance once, from /sys/devices/system/cpu/cpu*/cache/index*."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from wattwise_devices.kernel_text import natural, parse_cpu_list
from wattwise_devices.system import System

CacheKind = Literal["data", "instruction", "unified"]
_KINDS: dict[str, CacheKind] = {"Data": "data", "Instruction": "instruction", "Unified": "unified"}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """One instance. cpus: the logical CPUs that share it. line_bytes: None if unknown."""

    level: int
    kind: CacheKind
    size_bytes: int
    line_bytes: int | None
    cpus: tuple[int, ...]


def read_caches(system: System, online: tuple[int, ...]) -> tuple[Cache, ...]:
    """All caches of these CPUs, smallest level first; () where the system does not tell."""
    found: dict[tuple[int, CacheKind, tuple[int, ...]], Cache] = {}
    for cpu in online:
        for folder in system.glob(f"/sys/devices/system/cpu/cpu{cpu}/cache/index*"):
            level, kind = (
                natural(system.read_text(folder / "level")),
                _KINDS.get(system.read_text(folder / "type") or ""),
            )
            size = _size_bytes(system.read_text(folder / "size"))
            if level is None or level < 1 or kind is None or not size:
                continue
            cpus = parse_cpu_list(system.read_text(folder / "shared_cpu_list")) or (cpu,)
            line = natural(system.read_text(folder / "coherency_line_size"))
            found.setdefault(
                (level, kind, cpus), Cache(level=level, kind=kind, size_bytes=size, line_bytes=line or None, cpus=cpus)
            )
    return tuple(sorted(found.values(), key=lambda c: (c.level, c.kind, c.cpus)))


def _size_bytes(text: str | None) -> int | None:
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", text or "")
    return int(match[1]) * _UNITS[match[2]] if match else None
