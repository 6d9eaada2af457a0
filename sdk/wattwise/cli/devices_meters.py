"""The meters of `wattwise devices`: which there are, what each reads now, why others are not here; the machine's state.

Every meter is read once, so that one that exists but cannot be read shows as such.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wattwise_devices.machine import Machine
from wattwise_devices.meters import Diagnosis, MachineState, Meter, Reading, StateReader, diagnose, open_meters


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterLook:
    """meters: best first, each with its reading, or None where it cannot be read now. sources: what each gave."""

    meters: tuple[tuple[Meter, Reading | None], ...]
    sources: tuple[Diagnosis, ...]
    state: MachineState

    def to_json(self) -> dict[str, Any]:
        """Three keys: meters, meter_sources and state."""
        state = asdict(self.state)
        state.pop("time_s")  # a monotonic time means nothing outside this process
        return {
            "meters": [_meter_json(meter, reading) for meter, reading in self.meters],
            "meter_sources": [asdict(source) for source in self.sources],
            "state": {name: sorted(v) if isinstance(v, frozenset) else v for name, v in state.items()},
        }

    def words(self) -> list[str]:
        """A line for each meter; where nothing measures, what every source says about it."""
        lines = [_meter_words(meter, reading) for meter, reading in self.meters]
        if any(not meter.estimated for meter, _ in self.meters):
            return lines
        reasons = [f"{source.source}: {reason}" for source in self.sources for reason in source.reasons]
        return [*lines, "nothing here measures power, because:", *reasons]

    def state_words(self) -> list[str]:
        """What is known of temperature, battery, clock and throttling, on one line."""
        state = self.state
        parts = [
            f"{state.temperature_c:.0f} °C" if state.temperature_c is not None else "",
            f"battery {state.battery_percent:.0f} %" if state.battery_percent is not None else "",
            {True: "on battery", False: "on mains", None: ""}[state.on_battery],
            f"{state.cpu_mhz:.0f} MHz" if state.cpu_mhz is not None else "",
            f"throttled now: {', '.join(sorted(state.throttled))}" if state.throttled else "",
            f"throttled before: {', '.join(sorted(state.throttled_before))}" if state.throttled_before else "",
        ]
        return ["; ".join(part for part in parts if part) or "no temperature, battery or clock can be read"]


def look_at_meters(machine: Machine) -> MeterLook:
    """Open and read every meter of this machine."""
    meters = open_meters(machine.system, machine.profile)
    return MeterLook(
        meters=tuple((meter, meter.read()) for meter in meters),
        sources=tuple(diagnose(machine.system, machine.profile)),
        state=StateReader(machine.system).read(),
    )


def _meter_json(meter: Meter, reading: Reading | None) -> dict[str, Any]:
    return {
        "name": meter.name,
        "scope": meter.scope,
        "rate_hz": meter.rate_hz,
        "estimated": meter.estimated,
        "resolution_j": meter.resolution_j,
        "readable": reading is not None,
        "power_w": reading.power_w if reading else None,
        "energy_j": reading.energy_j if reading else None,
        "stale": reading.stale if reading else None,
    }


def _meter_words(meter: Meter, reading: Reading | None) -> str:
    kind = "ESTIMATED" if meter.estimated else "counts joules" if meter.resolution_j is not None else "samples watts"
    first = f"{meter.name}: {meter.scope}, {kind}, {meter.rate_hz:g} Hz"
    if reading is None:
        return f"{first}; cannot be read now"
    return first if reading.power_w is None else f"{first}; {reading.power_w:.2f} W now"
