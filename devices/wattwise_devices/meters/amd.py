"""AMD's own sensors in hwmon: amdgpu's power, amd_energy's counters, and the processors' power of other drivers.

On a processor with built-in graphics amdgpu's "PPT" is the power of the whole package, so its scope then is that; on
a card it is the card's. Counters of single cores are added up. Formats: Documentation/gpu/amdgpu/thermal.rst,
Documentation/hwmon/fam15h_power.rst; amd_energy was in Linux 5.8 to 5.12 and lives on outside of it.
"""

from __future__ import annotations

from wattwise_devices.meters.chips import Chip, chips
from wattwise_devices.meters.contract import Meter, Scope
from wattwise_devices.meters.counter import CounterMeter
from wattwise_devices.meters.samples import SampleMeter
from wattwise_devices.meters.source import Opened
from wattwise_devices.profile import Profile
from wattwise_devices.system import System

_NAMES = ("amdgpu", "amd_energy", "zenpower", "fam15h_power")
_RATE_HZ = 10.0  # assumption: firmware tables are refreshed about every tenth of a second
_ENERGY_STEP_J = 1 / 2**16  # the usual energy unit of Zen processors


def claims(chip: Chip) -> bool:
    """Whether a hwmon chip belongs to this file."""
    return chip.name in _NAMES


def open_amd(system: System, profile: Profile | None = None) -> Opened:
    """Meters "amdgpu", "amd:socket0", "amd:cores", "amd:zenpower/..."."""
    mine = [chip for chip in chips(system) if claims(chip)]
    if not mine:
        return Opened(reasons=("no sensor of amdgpu, amd_energy, zenpower or fam15h_power",))
    meters: list[Meter] = []
    reasons: list[str] = []
    for chip in mine:
        twins = sum(other.name == chip.name for other in mine) > 1
        suffix = f"@{chip.bus_id}" if twins else ""
        opened = _counters(chip, suffix) if chip.name == "amd_energy" else _powers(chip, suffix)
        meters += opened
        if not opened:
            reasons.append(f"{chip.name}{suffix}: shows no power that can be read (amd_energy needs root)")
    return Opened(tuple(meters), tuple(reasons))


def _powers(chip: Chip, suffix: str) -> list[Meter]:
    meters: list[Meter] = []
    indices = chip.indices("power", "input", "average")
    for index in indices:
        if chip.watts(index) is None:
            continue
        label = chip.label("power", index)
        name = "amdgpu" if chip.name == "amdgpu" else f"amd:{chip.name}"
        if len(indices) > 1:
            name += f"/{label or index}"
        meters.append(
            SampleMeter(
                name + suffix, _scope(chip, label), chip.system, lambda i=index: chip.watts(i), rate_hz=_RATE_HZ
            )
        )
    return meters


def _scope(chip: Chip, label: str | None) -> Scope:
    if chip.name == "fam15h_power":
        return "package"
    if chip.name == "zenpower":
        return "cores" if label and "core" in label.lower() else "rail"
    # Only processors with built-in graphics show the voltage of the north bridge beside the graphics' own.
    built_in = any((chip.label("in", i) or "").lower() == "vddnb" for i in chip.indices("in", "label"))
    return "package" if built_in else "gpu"


def _counters(chip: Chip, suffix: str) -> list[Meter]:
    """One per socket, and the cores' sum."""
    labels = {index: (chip.label("energy", index) or "") for index in chip.indices("energy", "input")}
    sockets = [index for index, label in labels.items() if label.lower().startswith("esocket")]
    cores = [index for index, label in labels.items() if label.lower().startswith("ecore")]
    meters: list[Meter] = []
    groups: list[tuple[str, Scope, list[int]]] = [(f"amd:socket{labels[i][7:]}", "package", [i]) for i in sockets]
    if len(sockets) > 1:
        groups.insert(0, ("amd:sockets", "package", sockets))
    if cores:
        groups.append(("amd:cores", "cores", cores))
    for name, scope, indices in groups:
        if _sum_j(chip, indices) is not None:
            meters.append(
                CounterMeter(
                    name + suffix,
                    scope,
                    chip.system,
                    lambda indices=indices: _sum_j(chip, indices),
                    resolution_j=_ENERGY_STEP_J * len(indices),
                    rate_hz=_RATE_HZ,
                )
            )
    return meters


def _sum_j(chip: Chip, indices: list[int]) -> float | None:
    """None if one does not answer: a part is never called the total."""
    values = [chip.joules(index) for index in indices]
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
