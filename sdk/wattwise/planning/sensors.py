"""Whether this machine can be watched: power meters, a temperature, a battery. Opens them and looks once."""

from __future__ import annotations

from wattwise_devices.machine import Machine
from wattwise_devices.meters import MachineState, StateReader, diagnose, open_meters
from wattwise_devices.meters.registry import covers_whole


def power_meters(machine: Machine) -> tuple[list[str], list[str]]:
    """Names of meters whose watts may stand for the device or its processor, and why there are no others."""
    names = [meter.name for meter in open_meters(machine.system, machine.profile) if covers_whole(meter)]
    reasons = [reason for entry in diagnose(machine.system, machine.profile) for reason in entry.reasons]
    return names, reasons


def idle_watts(machine: Machine) -> float | None:
    """What the best meter here would show with nothing running, from the profile; None if they do not go together."""
    meters = [meter for meter in open_meters(machine.system, machine.profile) if covers_whole(meter)]
    if machine.profile is None or not meters or meters[0].scope not in ("board", "battery"):
        return None
    return machine.profile.idle_w


def machine_state(machine: Machine) -> MachineState:
    """Temperature, battery and what else the machine says now."""
    return StateReader(machine.system).read()
