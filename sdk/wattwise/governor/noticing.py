"""What the machine says about itself, turned into events at its edges: battery, mains, under-voltage, firmware.

Each is reported once when it begins, and not again before it has ended.
"""

from __future__ import annotations

from wattwise.events import BatteryFloor, Event, FirmwareThrottled, OnBattery, OnMains, UnderVoltage
from wattwise.governor.controls import Limits
from wattwise_devices.meters.contract import MachineState

UNDER_VOLTAGE = "under-voltage"
FLOOR_HYSTERESIS_PERCENT = 1.0


class Noticing:
    """The last state of the machine, and what has changed since."""

    def __init__(self) -> None:
        self.under_voltage = False
        self.floor: BatteryFloor | None = None  # in force now
        self.clock_changed = False  # by the firmware, in the latest round
        self._on_battery: bool | None = None
        self._reasons: frozenset[str] = frozenset()

    def look(self, at_s: float, state: MachineState, limits: Limits) -> list[Event]:
        """Events of this round."""
        return [*self._supply(at_s, state), *self._firmware(at_s, state), *self._battery(at_s, state, limits)]

    def _supply(self, at_s: float, state: MachineState) -> list[Event]:
        events: list[Event] = []
        percent = state.battery_percent
        charge = "" if percent is None else f" at {percent:.0f} %"
        if state.on_battery is not None:
            if self._on_battery is False and state.on_battery:
                events.append(OnBattery(f"now on battery{charge}", at_s=at_s, percent=percent))
            if self._on_battery is True and not state.on_battery:
                events.append(OnMains(f"plugged in again{charge}", at_s=at_s, percent=percent))
            self._on_battery = state.on_battery
        low = UNDER_VOLTAGE in state.throttled
        if low and not self.under_voltage:
            words = "under-voltage: the power supply or its cable cannot bring this current; using fewer cores"
            events.append(UnderVoltage(words, at_s=at_s))
        self.under_voltage = low
        return events

    def _firmware(self, at_s: float, state: MachineState) -> list[Event]:
        reasons = state.throttled - {UNDER_VOLTAGE}
        new = reasons - self._reasons
        self.clock_changed = reasons != self._reasons
        self._reasons = reasons
        if not new:
            return []
        words = f"the firmware slows the processor: {', '.join(sorted(new))}"
        return [FirmwareThrottled(words, at_s=at_s, reasons=tuple(sorted(reasons)))]

    def _battery(self, at_s: float, state: MachineState, limits: Limits) -> list[Event]:
        floor, percent = limits.battery_floor_percent, state.battery_percent
        if floor is None or self._on_battery is False:
            self.floor = None
            return []
        if percent is None:  # gauge silent: what was in force stays in force
            return []
        if self.floor is not None:
            if percent >= floor + FLOOR_HYSTERESIS_PERCENT:
                self.floor = None
            return []
        if percent >= floor:
            return []
        does = "the reply is stopped" if limits.on_floor == "stop" else "paced to the minimum"
        self.floor = BatteryFloor(
            f"battery at {percent:.0f} %, under the floor of {floor:.0f} %: {does}",
            at_s=at_s, percent=percent, floor_percent=floor, action=limits.on_floor,
        )  # fmt: skip
        return [self.floor]
