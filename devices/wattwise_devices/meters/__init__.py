"""Meters of power and energy, and sensors of the machine's state: one file each, unknown is None."""

from wattwise_devices.meters.contract import MachineState, Meter, Reading, Scope
from wattwise_devices.meters.registry import Diagnosis, best_meter, covers_whole, diagnose, open_meters
from wattwise_devices.meters.state import StateReader

__all__ = [
    "Diagnosis",
    "MachineState",
    "Meter",
    "Reading",
    "Scope",
    "StateReader",
    "best_meter",
    "covers_whole",
    "diagnose",
    "open_meters",
]
