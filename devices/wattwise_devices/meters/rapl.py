"""RAPL energy counters of Intel and AMD processors, through the kernel's powercap class.

Zones stand flat in /sys/class/powercap: `intel-rapl:0` is a package, `intel-rapl:0:1` one of its parts; `psys` is the
whole platform where the maker wired it up. `energy_uj` counts up to `max_energy_range_uj` and starts over. Since 2020
most systems let only root read it. Several packages are also offered as one sum, with memory where it is apart.
Formats: Documentation/power/powercap/powercap.rst, Documentation/ABI/testing/sysfs-class-powercap.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattwise_devices.meters.contract import Meter, Scope
from wattwise_devices.meters.counter import CounterMeter
from wattwise_devices.meters.source import Opened
from wattwise_devices.profile import Profile
from wattwise_devices.system import System

_POWERCAP = "/sys/class/powercap"
_RATE_HZ = 1000.0  # the processor updates its counters about every millisecond (Intel SDM vol. 3, 15.10)
_RAW_STEPS = 2**32 - 1  # the register behind max_energy_range_uj has 32 bits, so its step follows from it
_SCOPES: dict[str, Scope] = {"core": "cores", "uncore": "gpu", "dram": "dram", "psys": "board"}


@dataclass(frozen=True, slots=True)
class _Zone:
    folder: str
    label: str
    parent: str | None
    range_j: float | None

    @property
    def scope(self) -> Scope:
        if self.label.startswith("package"):
            return "package"
        return _SCOPES.get(self.label, "rail")

    def count_j(self, system: System) -> float | None:
        energy_uj = system.read_int(f"{_POWERCAP}/{self.folder}/energy_uj")
        return None if energy_uj is None else energy_uj / 1e6


def open_rapl(system: System, profile: Profile | None = None) -> Opened:
    """Meters "rapl:psys", "rapl:packages", "rapl:package-0", "rapl:package-0/core" and so on."""
    zones = _zones(system)
    if not zones:
        return Opened(reasons=("no RAPL counters in /sys/class/powercap (not x86, or a virtual machine)",))
    reasons = tuple(
        f"{zone.label}: {_POWERCAP}/{zone.folder}/energy_uj cannot be read; RAPL needs root, "
        f"or once `sudo chmod a+r {_POWERCAP}/intel-rapl*/energy_uj`"
        for zone in zones
        if zone.count_j(system) is None
    )
    usable = [zone for zone in zones if zone.count_j(system) is not None]
    names = {zone.folder: zone.label for zone in zones}
    packages = {zone.folder: _meter(system, zone, names) for zone in usable if zone.scope == "package"}
    meters: list[Meter] = list(packages.values())
    apart = [zone for zone in usable if zone.scope == "dram" and zone.parent in packages]
    parts = [_meter(system, zone, names) for zone in usable if zone.scope not in ("package", "board")]
    if len(packages) > 1 and len(packages) == sum(zone.scope == "package" for zone in zones):
        drams = [meter for meter in parts if meter.scope == "dram"] if apart else []
        meters.insert(0, _sum(system, [*packages.values(), *drams]))
    for zone in usable:
        if zone.scope == "board":
            meters.insert(0, _platform(system, zone, list(packages.values())))
    return Opened((*meters, *parts), reasons)


def _zones(system: System) -> list[_Zone]:
    """All zones with a name; those over memory-mapped registers only where the usual ones are missing."""
    folders = [path.parent.name for path in system.glob(f"{_POWERCAP}/intel-rapl*:*/name")]
    usual = [folder for folder in folders if not folder.startswith("intel-rapl-mmio")]
    zones = []
    for folder in usual or folders:
        label = system.read_text(f"{_POWERCAP}/{folder}/name")
        if not label or len(label) > 40 or not label.isprintable():
            continue
        top, _, part = folder.partition(":")[2].partition(":")
        parent = f"{folder.partition(':')[0]}:{top}" if part else None
        range_uj = system.read_int(f"{_POWERCAP}/{folder}/max_energy_range_uj")
        range_j = range_uj * (1 + 1 / _RAW_STEPS) / 1e6 if range_uj and range_uj > 0 else None
        zones.append(_Zone(folder, label, parent, range_j))
    return zones


def _meter(system: System, zone: _Zone, names: dict[str, str]) -> CounterMeter:
    parent = names.get(zone.parent) if zone.parent else None
    return CounterMeter(
        f"rapl:{parent}/{zone.label}" if parent else f"rapl:{zone.label}",
        zone.scope,
        system,
        lambda: zone.count_j(system),
        range_j=zone.range_j,
        resolution_j=zone.range_j / _RAW_STEPS if zone.range_j else None,
        rate_hz=_RATE_HZ,
    )


def _sum(system: System, meters: list[CounterMeter]) -> CounterMeter:
    """Of counters whose wrap-around is already undone."""
    return CounterMeter(
        "rapl:packages",
        "package",
        system,
        lambda: _total_j(meters),
        resolution_j=sum(meter.resolution_j or 0.0 for meter in meters) or None,
        rate_hz=_RATE_HZ,
    )


def _total_j(meters: list[CounterMeter]) -> float | None:
    """None unless all of them answer: a part is never called the total."""
    total_j = 0.0
    for meter in meters:
        reading = meter.read()
        if reading is None or reading.stale or reading.energy_j is None:
            return None
        total_j += reading.energy_j
    return total_j


def _platform(system: System, zone: _Zone, packages: list[CounterMeter]) -> CounterMeter:
    """psys contains the packages; where it counts less, the maker did not wire it up, and it is called stale."""
    offsets = {meter.name: _total_j([meter]) or 0.0 for meter in packages}
    return CounterMeter(
        f"rapl:{zone.label}",
        "board",
        system,
        lambda: zone.count_j(system),
        range_j=zone.range_j,
        resolution_j=zone.range_j / _RAW_STEPS if zone.range_j else None,
        rate_hz=_RATE_HZ,
        at_least_j=lambda: sum((_total_j([m]) or 0.0) - offsets[m.name] for m in packages) if packages else None,
    )
