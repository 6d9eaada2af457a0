"""NVIDIA Jetson's INA3221 monitors, through hwmon (JetPack 5 and later) or the older iio folders.

Where the module's input has a rail of its own (VDD_IN, on Nano POM_5V_IN) that is the total. AGX modules have none;
there the sum of the inputs is offered, if all are known by name, as "jetson:inputs". Other rails follow one by one.
Sources: NVIDIA's Jetson Linux developer guide, "Software-based power consumption modeling"; for hwmon
Documentation/hwmon/ina3221.rst.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wattwise_devices.meters.chips import Chip, chips
from wattwise_devices.meters.contract import Meter, Scope
from wattwise_devices.meters.samples import SampleMeter
from wattwise_devices.meters.source import Opened, number
from wattwise_devices.profile import Profile
from wattwise_devices.system import System

_TOTALS = ("VDD_IN", "POM_5V_IN")
_INPUTS = (  # rails that together feed a module without a total; rails behind one of them are left out
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)
_KNOWN = {"VDD_CPU_GPU_CV", "VDD_SOC", "VDDQ_VDD2_1V8AO", "VDD_CPU", "VDD_GPU", *_TOTALS, *_INPUTS[0], *_INPUTS[1]}
_RATE_HZ = 5.0  # assumption: 140 microseconds per conversion, three channels, 64 to 512 averaged by NVIDIA's settings
_STANDSTILL_S = 30.0
_SCOPES: dict[str, Scope] = {
    "VDD_IN": "board",
    "POM_5V_IN": "board",
    "POM_5V_GPU": "gpu",
    "VDD_GPU": "gpu",
    "GPU": "gpu",
}

Rails = dict[str, Callable[[], float | None]]


def claims(chip: Chip) -> bool:
    """Whether a hwmon chip is one of Jetson's, by the names of its rails."""
    return chip.name == "ina3221" and any(_is_rail(chip.label("in", index)) for index in chip.indices("in", "label"))


def open_jetson(system: System, profile: Profile | None = None) -> Opened:
    """Meters "jetson:VDD_IN", "jetson:inputs", "jetson:<rail>"."""
    rails = _hwmon_rails(system) or _iio_rails(system)
    if not rails:
        return Opened(reasons=("no monitor with the names of a Jetson's rails",))
    reasons = tuple(f"{name}: cannot be read" for name, watts in rails.items() if watts() is None)
    meters: list[Meter] = [_meter(system, name, watts) for name, watts in rails.items() if watts() is not None]
    if not any(name in rails for name in _TOTALS):
        for names in _INPUTS:
            if all(name in rails for name in names):
                parts = [rails[name] for name in names]
                if _sum(parts) is not None:
                    meters.insert(0, _meter(system, "inputs", lambda parts=parts: _sum(parts), "board"))
    meters.sort(key=lambda meter: meter.scope != "board")
    return Opened(tuple(meters), reasons)


def _meter(system: System, name: str, watts: Callable[[], float | None], scope: Scope | None = None) -> SampleMeter:
    return SampleMeter(
        f"jetson:{name}",
        scope or _SCOPES.get(name, "rail"),
        system,
        watts,
        rate_hz=_RATE_HZ,
        standstill_s=_STANDSTILL_S,
    )


def _sum(parts: list[Callable[[], float | None]]) -> float | None:
    """None if one rail is missing: a part is never called the total."""
    values = [watts() for watts in parts]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _is_rail(label: str | None) -> bool:
    return label is not None and (label in _KNOWN or label.startswith("POM_5V"))


def _hwmon_rails(system: System) -> Rails:
    rails: Rails = {}
    for chip in chips(system):
        if not claims(chip):
            continue
        for index in chip.indices("curr", "input"):
            label = chip.label("in", index)
            if label is not None and label != "NC" and chip.value(f"in{index}_enable") != 0:
                rails[label] = lambda chip=chip, index=index: chip.rail_watts(index)
    return rails


def _iio_rails(system: System) -> Rails:
    """rail_name_N beside in_powerN_input, in milliwatts."""
    rails: Rails = {}
    for path in system.glob("/sys/bus/i2c/drivers/ina3221x/*/iio*/rail_name_*"):
        label, index = system.read_text(path), path.name.rpartition("_")[2]
        if label and label.isprintable() and index.isdecimal():
            rails[label] = lambda file=path.parent / f"in_power{index}_input": _milliwatts(system, file)
    return rails


def _milliwatts(system: System, file: Path) -> float | None:
    value = number(system.read_text(file))
    return None if value is None else value / 1000
