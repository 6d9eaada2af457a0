"""Cores by kind, simultaneous multithreading, NUMA nodes and the CPUs that this process may run on.

Reads /sys/devices/system/cpu and its neighbours through a `System`. "performance" and "efficiency" are relative to the
other cores of the same machine: where all cores are alike they are "performance", and "unknown" is said only where
nothing about their speed can be read. Not here: quotas (limits.py), caches (caches.py).
Formats: Documentation/ABI/testing/sysfs-devices-system-cpu of Linux.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wattwise_devices.caches import Cache, read_caches
from wattwise_devices.cpu_features import CpuInfo, read_cpu_info
from wattwise_devices.kernel_text import natural, parse_cpu_list
from wattwise_devices.limits import cgroup_cpuset
from wattwise_devices.system import System

CoreKind = Literal["performance", "efficiency", "unknown"]
_SAME_KIND_RATIO = 1.3  # cores closer in speed than this are one kind: turbo bins of one design differ by up to 1.2
_CPU = "/sys/devices/system/cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """One logical CPU. smt_sibling_of: the first CPU of its physical core, if that is another one.

    capacity: the scheduler's figure, 1024 for the fastest core of the machine.
    """

    cpu: int
    core_id: int | None
    package: int | None
    kind: CoreKind
    smt_sibling_of: int | None
    max_mhz: float | None
    capacity: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    """A node of memory and the CPUs next to it. total_bytes: None if unknown."""

    node: int
    cpus: tuple[int, ...]
    total_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTopology:
    """The processor: name, online logical CPUs, instruction sets that all of them have, caches, NUMA nodes."""

    model_name: str | None
    architecture: str | None
    cores: tuple[Core, ...]
    features: tuple[str, ...]
    caches: tuple[Cache, ...]
    numa_nodes: tuple[NumaNode, ...]

    def physical(self, usable: tuple[int, ...] | None = None, kind: CoreKind | None = None) -> tuple[Core, ...]:
        """One logical CPU for each physical core among `usable` (default: all), fastest first."""
        seen: dict[int, Core] = {}
        for core in self.cores:
            if (usable is None or core.cpu in usable) and kind in (None, core.kind):
                first = core.cpu if core.smt_sibling_of is None else core.smt_sibling_of
                seen.setdefault(first, core)
        return tuple(sorted(seen.values(), key=_slowness))

    def last_cache_bytes(self) -> int | None:
        """Of the largest cache level there is, all instances together."""
        known = [c for c in self.caches if c.kind != "instruction"]
        level = max((c.level for c in known), default=None)
        return sum(c.size_bytes for c in known if c.level == level) or None


def read_topology(system: System) -> CpuTopology:
    """The machine's processor; with no cores at all where neither /sys nor /proc tells."""
    info = read_cpu_info(system)
    online = parse_cpu_list(system.read_text(f"{_CPU}/online")) or info.processors
    kinds = _kinds(system, online, info)
    return CpuTopology(
        model_name=info.model_name,
        architecture=_architecture(system, info),
        cores=tuple(_core(system, cpu, kinds.get(cpu, "unknown")) for cpu in online),
        features=info.features,
        caches=read_caches(system, online),
        numa_nodes=_numa_nodes(system),
    )


def usable_cpu_numbers(system: System, online: tuple[int, ...]) -> tuple[int, ...]:
    """The CPUs that this process's affinity and control group allow, in order."""
    status = system.read_text("/proc/self/status") or ""
    allowed = next((line.partition(":")[2] for line in status.splitlines() if line.startswith("Cpus_allowed_list")), "")
    cpus = parse_cpu_list(allowed)
    if not cpus and system.root == Path("/") and hasattr(os, "sched_getaffinity"):
        cpus = tuple(sorted(os.sched_getaffinity(0)))
    for narrower in (online, cgroup_cpuset(system.root)):
        both = tuple(cpu for cpu in cpus if cpu in narrower) if cpus else narrower
        cpus = both or cpus  # sets that contradict each other tell nothing
    return cpus


def _core(system: System, cpu: int, kind: CoreKind) -> Core:
    folder = f"{_CPU}/cpu{cpu}"
    siblings = parse_cpu_list(
        system.read_text(f"{folder}/topology/thread_siblings_list")
        or system.read_text(f"{folder}/topology/core_cpus_list")
    )
    return Core(
        cpu=cpu,
        core_id=natural(system.read_text(f"{folder}/topology/core_id")),
        package=natural(system.read_text(f"{folder}/topology/physical_package_id")),
        kind=kind,
        smt_sibling_of=siblings[0] if cpu in siblings and siblings[0] != cpu else None,
        max_mhz=_max_mhz(system, cpu),
        capacity=_positive(system, f"{folder}/cpu_capacity"),
    )


def _kinds(system: System, online: tuple[int, ...], info: CpuInfo) -> dict[int, CoreKind]:
    """The best evidence first: what the kernel calls them, their capacity, their design, their clock."""
    fast, slow = _hybrid_sets(system)
    if fast and slow:
        return {cpu: "performance" if cpu in fast else "efficiency" for cpu in online if cpu in fast | slow}
    capacity = {cpu: _positive(system, f"{_CPU}/cpu{cpu}/cpu_capacity") for cpu in online}
    split = _split(capacity)
    if "efficiency" in split.values():
        return split
    if info.parts_known and info.little and len(info.little) < len(info.processors):
        return {cpu: "efficiency" if cpu in info.little else "performance" for cpu in online}
    for values in (
        {cpu: _positive(system, f"{_CPU}/cpu{cpu}/acpi_cppc/highest_perf") for cpu in online},
        {cpu: _max_mhz(system, cpu) for cpu in online},
    ):
        found = _split(values)
        if "efficiency" in found.values():
            return found
        split = split or found
    if not split and info.parts_known:
        return dict.fromkeys(online, "performance")
    return split


def _split(values: dict[int, int | None] | dict[int, float | None]) -> dict[int, CoreKind]:
    """Two kinds at the widest gap between neighbouring speeds; {} if the speed of any core is unknown."""
    known = [float(v) for v in values.values() if v is not None]
    if not known or len(known) < len(values):
        return {}
    speeds = sorted(set(known))
    gaps = [(high / low, high) for low, high in itertools.pairwise(speeds)]
    ratio, threshold = max(gaps, default=(1.0, speeds[0]))
    if ratio < _SAME_KIND_RATIO:
        threshold = speeds[0]
    return {cpu: "performance" if (v or 0) >= threshold else "efficiency" for cpu, v in values.items()}


def _hybrid_sets(system: System) -> tuple[frozenset[int], frozenset[int]]:
    """Intel's hybrid processors: the performance monitoring units of each kind list their CPUs."""
    fast = frozenset(parse_cpu_list(system.read_text("/sys/devices/cpu_core/cpus")))
    names = ("cpu_atom", "cpu_lowpower")
    slow = frozenset(cpu for name in names for cpu in parse_cpu_list(system.read_text(f"/sys/devices/{name}/cpus")))
    return fast, slow


def _numa_nodes(system: System) -> tuple[NumaNode, ...]:
    nodes = []
    for folder in system.glob("/sys/devices/system/node/node*"):
        number = natural(folder.name.removeprefix("node"))
        if number is None:
            continue
        _, _, rest = (system.read_text(folder / "meminfo") or "").partition("MemTotal:")
        total_kib = natural(" ".join(rest.split()[:1]))
        cpus = parse_cpu_list(system.read_text(folder / "cpulist"))
        nodes.append(NumaNode(node=number, cpus=cpus, total_bytes=None if total_kib is None else total_kib * 1024))
    return tuple(sorted(nodes, key=lambda node: node.node))


def _architecture(system: System, info: CpuInfo) -> str | None:
    """As `uname -m`; for a recorded tree what the instruction sets betray."""
    if system.root == Path("/") and hasattr(os, "uname"):
        return os.uname().machine
    if "neon" in info.features:
        return "aarch64"
    return "x86_64" if "sse4_2" in info.features else None


def _max_mhz(system: System, cpu: int) -> float | None:
    khz = _positive(system, f"{_CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq")
    return None if khz is None else khz / 1000


def _positive(system: System, path: str) -> int | None:
    return natural(system.read_text(path)) or None


def _slowness(core: Core) -> tuple[int, float, int]:
    order = {"performance": 0, "unknown": 1, "efficiency": 2}
    return order[core.kind], -(core.capacity or core.max_mhz or 0.0), core.cpu
