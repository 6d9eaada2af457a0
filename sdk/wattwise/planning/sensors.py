"""Whether this machine can be watched: power meters, a temperature, a battery. Opens them and looks once."""

from __future__ import annotations

from wattwise_devices.machine import Machine
from wattwise_devices.meters import diagnose, open_meters
from wattwise_devices.meters.power_supply import batteries
from wattwise_devices.meters.registry import covers_whole


def power_meters(machine: Machine) -> tuple[list[str], list[str]]:
    """Names of meters whose watts may stand for the device or its processor, and why there are no others."""
    names = [meter.name for meter in open_meters(machine.system, machine.profile) if covers_whole(meter)]
    reasons = [reason for entry in diagnose(machine.system, machine.profile) for reason in entry.reasons]
    return names, reasons


def temperature_c(machine: Machine) -> float | None:
    """The hottest thermal zone or sensor now; None where none can be read."""
    system = machine.system
    files = [*system.glob("/sys/class/thermal/thermal_zone*/temp"), *system.glob("/sys/class/hwmon/hwmon*/temp*_input")]
    degrees = [value / 1000 for file in files if (value := system.read_int(file)) is not None]
    return max((d for d in degrees if -40 < d < 150), default=None)


def battery_percent(machine: Machine) -> float | None:
    """Charge of the fullest battery that feeds this device; None where there is none."""
    charges = [supply.capacity_percent() for supply in batteries(machine.system)]
    return max((percent for percent in charges if percent is not None), default=None)
