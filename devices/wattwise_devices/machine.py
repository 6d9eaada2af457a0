"""The whole machine in one frozen object: processor, memory, limits, board, profile; storage on request.

`probe_machine` only reads files, takes well under two seconds and never raises: unknown is None. What has to be
measured (memory bandwidth, storage rate) is `measure_machine`'s, which remembers its results under a fingerprint.
Accelerators are found one layer up (wattwise_runtimes.accelerators), because the engines' own libraries know them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from wattwise_devices import darwin
from wattwise_devices.board import Platform, read_board
from wattwise_devices.cpu_features import read_cpu_info
from wattwise_devices.errors import CorruptArtifact
from wattwise_devices.limits import cpu_quota
from wattwise_devices.measured import Measured, measure_machine
from wattwise_devices.memory_info import MemoryInfo, read_memory_info
from wattwise_devices.profile import Profile, find_profile
from wattwise_devices.storage import StorageInfo, read_storage
from wattwise_devices.system import System
from wattwise_devices.topology import CpuTopology, read_topology, usable_cpu_numbers

__all__ = ["Machine", "Measured", "measure_machine", "probe_machine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """usable: logical CPUs by affinity. quota_cpus: CPUs' worth of time by the control group, a fraction, or None.

    hypervisor: None on bare metal or where nothing tells. profile: what is known about this kind of machine.
    profile_error: why none could be used, if a file was broken.
    """

    cpu: CpuTopology
    usable: tuple[int, ...]
    quota_cpus: float | None
    memory: MemoryInfo
    board: str | None
    platform: Platform
    hypervisor: str | None
    profile: Profile | None
    profile_error: str | None = None
    system: System = field(default_factory=System, repr=False, compare=False)

    @property
    def usable_cpus(self) -> float:
        """CPUs' worth of time that this process can use: affinity and quota together; 1 if neither is known."""
        by_affinity = float(len(self.usable) or len(self.cpu.cores) or 1)
        return by_affinity if self.quota_cpus is None else min(by_affinity, self.quota_cpus)

    def storage(self, path: str | Path, measured: Measured | None = None) -> StorageInfo:
        """What a path lies on, with the rate of its device if that was measured."""
        info = read_storage(path, self.system)
        rate = measured.storage.get(info.key) if measured is not None else None
        return info if rate is None else replace(info, read_bytes_per_s=rate.bytes_per_s, method=rate.method)

    def to_json(self) -> dict[str, Any]:
        """Plain data under the names of the fields."""
        return {
            "board": self.board,
            "platform": self.platform,
            "hypervisor": self.hypervisor,
            "cpu": asdict(self.cpu),
            "usable": list(self.usable),
            "quota_cpus": self.quota_cpus,
            "usable_cpus": self.usable_cpus,
            "memory": {**asdict(self.memory), "allowed_bytes": self.memory.allowed_bytes},
            "profile": None if self.profile is None else asdict(self.profile),
            "profile_error": self.profile_error,
        }


def probe_machine(system: System | None = None) -> Machine:
    """This machine, or the one whose tree the system's root holds."""
    system = system or System()
    cpu, memory = read_topology(system), read_memory_info(system)
    board = read_board(system, read_cpu_info(system))
    name = board.name
    if board.platform == "darwin":
        cpu, memory = darwin.read_topology(system) or cpu, darwin.read_memory_info(system) or memory
        name = darwin.read_board(system) or name
    profile, error = _profile(name, cpu.model_name, board.platform)
    return Machine(
        cpu=cpu,
        usable=usable_cpu_numbers(system, tuple(core.cpu for core in cpu.cores)),
        quota_cpus=cpu_quota(system.root),
        memory=memory,
        board=name,
        platform=board.platform,
        hypervisor=board.hypervisor,
        profile=profile,
        profile_error=error,
        system=system,
    )


def _profile(board: str | None, cpu: str | None, platform: str) -> tuple[Profile | None, str | None]:
    try:
        return find_profile(board, cpu, platform), None
    except CorruptArtifact as error:
        return None, str(error)
