"""Batteries and external supplies as the kernel's power_supply class shows them. Used by a meter and by the state.

Units are microvolts, microamperes, microwatts, microwatt-hours. The sign of a current differs between drivers, so
only its size is used. Supplies of scope "Device" belong to a mouse or a headset and are left out.
Formats: Documentation/ABI/testing/sysfs-class-power, Documentation/power/power_supply_class.rst.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattwise_devices.meters.source import number
from wattwise_devices.system import System

_SUPPLIES = "/sys/class/power_supply"
_LOOK_AGAIN_S = 10.0
_MOST_WH = 1000.0  # of one battery
_LEAST_W = 0.01  # less than any running device draws: a gauge that does not know, or counts in other units


@dataclass(frozen=True, slots=True)
class Supply:
    """One folder of the class."""

    system: System
    name: str

    def text(self, file: str) -> str | None:
        """A file's text, None if it cannot be read."""
        return self.system.read_text(f"{_SUPPLIES}/{self.name}/{file}")

    def micro(self, *files: str, signed: bool = False) -> float | None:
        """The first of these files that holds a number, without the factor of a million.

        signed: a negative one is meant and its size is taken; else it is no value.
        """
        for file in files:
            value = number(self.text(file))
            if value is not None and (signed or value >= 0):
                return abs(value) / 1e6
        return None

    @property
    def status(self) -> str:
        """In small letters; "" if unknown."""
        return (self.text("status") or "").lower()

    def volts(self) -> float | None:
        """Now, or averaged."""
        return self.micro("voltage_now", "voltage_avg")

    def watts(self) -> float | None:
        """What flows through it; None where neither power nor current and voltage can be had."""
        watts = self.micro("power_now", signed=True)
        if watts is None:
            amperes, volts = self.micro("current_now", "current_avg", signed=True), self.volts()
            watts = None if amperes is None or volts is None else amperes * volts
        return watts if watts is not None and watts >= _LEAST_W else None

    def stored_j(self) -> float | None:
        """What it still holds, by its gauge."""
        energy_wh = self.micro("energy_now")
        if energy_wh is None:
            charge_ah = self.micro("charge_now")
            volts = self.micro("voltage_min_design") or self.volts()
            energy_wh = None if charge_ah is None or volts is None else charge_ah * volts
        return None if energy_wh is None or energy_wh > _MOST_WH else energy_wh * 3600

    def capacity_percent(self) -> float | None:
        """0 to 100, else None."""
        percent = number(self.text("capacity"))
        return percent if percent is not None and 0 <= percent <= 100 else None


class Supplies:
    """The machine's own supplies, listed anew every ten seconds: plugs and packs come and go."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._looked_s = float("-inf")
        self._batteries: list[Supply] = []
        self._external: list[Supply] = []

    def batteries(self) -> list[Supply]:
        """Those that are present."""
        self._look()
        return self._batteries

    def external_online(self) -> bool | None:
        """Whether mains, USB or the like feed the machine; None if nothing says."""
        self._look()
        states = [supply.text("online") for supply in self._external]
        if any(state in ("1", "2") for state in states):  # 2: a fixed one of several voltages
            return True
        return False if "0" in states else None

    def on_battery(self) -> bool | None:
        """Whether the machine runs from its batteries now; None if that cannot be told."""
        online = self.external_online()
        if online is True:
            return False
        statuses = {supply.status for supply in self.batteries()}
        if "discharging" in statuses:
            return True
        if online is False:
            return True if self.batteries() else None
        return False if statuses & {"charging", "full", "not charging"} else None

    def _look(self) -> None:
        now_s = self._system.clock_s()
        if now_s - self._looked_s < _LOOK_AGAIN_S:
            return
        self._looked_s = now_s
        self._batteries, self._external = [], []
        for path in self._system.glob(f"{_SUPPLIES}/*/type"):
            supply = Supply(self._system, path.parent.name)
            kind = (supply.text("type") or "").lower()
            if not kind or kind == "ups" or (supply.text("scope") or "").lower() == "device":
                continue
            if kind != "battery":
                self._external.append(supply)
            elif supply.text("present") != "0":
                self._batteries.append(supply)
