"""Power monitors that hwmon shows: INA219, INA226, INA3221 and their kin, ACPI power meters, power supplies' own.

A rail is what somebody soldered the chip to, so its scope is "rail" unless the driver says that it measures the whole
machine. Chips that have a file of their own here (Jetson's, AMD's) and batteries are left to those.
Formats: Documentation/hwmon/sysfs-interface.rst, ina2xx.rst, ina3221.rst, acpi_power_meter.rst.
"""

from __future__ import annotations

from collections.abc import Callable

from wattwise_devices.meters import amd, jetson
from wattwise_devices.meters.chips import Chip, chips
from wattwise_devices.meters.contract import Meter, Scope
from wattwise_devices.meters.counter import CounterMeter
from wattwise_devices.meters.samples import SampleMeter
from wattwise_devices.meters.source import Opened
from wattwise_devices.profile import Profile
from wattwise_devices.system import System

_RATE_HZ = 5.0  # assumption where a chip does not tell its update_interval
_RAIL_STANDSTILL_S = 30.0  # these converters resolve milliamperes: a live rail does not stand still for so long
_MONITORS = (
    "ina219",
    "ina220",
    "ina226",
    "ina230",
    "ina231",
    "ina233",
    "ina234",
    "ina238",
    "ina260",
    "ina3221",
    "ltc2945",
)
_WHOLE_MACHINE = ("power_meter", "corsairpsu", "acpi_power_meter")
_WHOLE_LABELS = ("total system power", "power total")
_GRAPHICS = ("i915", "xe", "nouveau")


def open_hwmon(system: System, profile: Profile | None = None) -> Opened:
    """Meters "hwmon:<chip>" or "hwmon:<chip>/<label or number>"."""
    supplies = {path.parent.name.replace("-", "_") for path in system.glob("/sys/class/power_supply/*/type")}
    meters: list[Meter] = []
    reasons: list[str] = []
    mine = [
        chip
        for chip in chips(system)
        if not (jetson.claims(chip) or amd.claims(chip)) and chip.name.replace("-", "_") not in supplies
    ]
    for chip in mine:
        prefix = f"hwmon:{chip.name}"
        if sum(other.name == chip.name for other in mine) > 1:
            prefix += f"@{chip.bus_id}"
        opened, unreadable = _open_chip(chip, prefix)
        meters += opened
        reasons += unreadable
    if not meters and not reasons:
        reasons.append("no chip in /sys/class/hwmon measures power")
    return Opened(tuple(meters), tuple(reasons))


def _open_chip(chip: Chip, prefix: str) -> tuple[list[Meter], list[str]]:
    """Counters where there are some, else watts, else voltage times current on chips made for that."""
    energies, powers = chip.indices("energy", "input"), chip.indices("power", "input", "average")
    if energies:
        sources = [("energy", index) for index in energies]
    elif powers:
        sources = [("power", index) for index in powers]
    elif chip.name in _MONITORS:
        sources = [("rail", index) for index in chip.indices("curr", "input") if chip.value(f"in{index}_enable") != 0]
    else:
        sources = []
    meters: list[Meter] = []
    unreadable: list[str] = []
    for kind, index in sources:
        label = chip.label("in" if kind == "rail" else kind, index)
        name = prefix if len(sources) == 1 and label is None else f"{prefix}/{label or index}"
        meter = _meter(chip, name, kind, index, _scope(chip, label))
        if meter is None:
            unreadable.append(f"{name}: cannot be read, or shows nothing")
        else:
            meters.append(meter)
    return meters, unreadable


def _meter(chip: Chip, name: str, kind: str, index: int, scope: Scope) -> Meter | None:
    if kind == "energy":
        if chip.joules(index) is None:
            return None
        return CounterMeter(
            name, scope, chip.system, lambda: chip.joules(index), resolution_j=1e-6, rate_hz=chip.rate_hz(_RATE_HZ)
        )
    watts: Callable[[], float | None] = (
        (lambda: chip.rail_watts(index)) if kind == "rail" else lambda: chip.watts(index)
    )
    if watts() is None:
        return None
    standstill_s = _RAIL_STANDSTILL_S if chip.name in _MONITORS else None
    return SampleMeter(
        name, scope, chip.system, watts, rate_hz=chip.rate_hz(_averaging_hz(chip, index)), standstill_s=standstill_s
    )


def _averaging_hz(chip: Chip, index: int) -> float:
    interval_ms = chip.value(f"power{index}_average_interval")
    return 1000 / interval_ms if interval_ms and interval_ms > 0 else _RATE_HZ


def _scope(chip: Chip, label: str | None) -> Scope:
    if chip.name in _GRAPHICS:
        return "gpu"
    if label is not None and label.lower() in _WHOLE_LABELS:
        return "board"
    return "board" if chip.name in _WHOLE_MACHINE and label is None else "rail"
