"""What the kernel's hwmon class shows: chips with inputs for voltage, current, power, energy and temperature.

Used by the meters of rails and graphics and by the state; not a meter. Units: millivolt, milliampere, microwatt,
microjoule, thousandths of a degree. Format: Documentation/hwmon/sysfs-interface.rst.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from wattwise_devices.meters.source import number
from wattwise_devices.system import System

_LONGEST_LABEL = 40


@dataclass(frozen=True, slots=True)
class Chip:
    """folder: below the system's root. name: its driver's name for it."""

    system: System
    folder: Path
    name: str

    def value(self, file: str) -> float | None:
        """A number as the kernel wrote it."""
        return number(self.system.read_text(self.folder / file))

    def label(self, kind: str, index: int) -> str | None:
        """What the maker calls one input, such as `label("in", 1)`."""
        text = self.system.read_text(self.folder / f"{kind}{index}_label")
        return text if text and text.isprintable() and len(text) <= _LONGEST_LABEL else None

    def indices(self, kind: str, *endings: str) -> list[int]:
        """Numbers of the inputs of a kind that have a file with one of these endings."""
        pattern = re.compile(rf"{kind}(\d{{1,3}})_(?:{'|'.join(endings)})")
        try:
            found = [pattern.fullmatch(path.name) for path in self.folder.iterdir()]
        except OSError:
            return []
        return sorted({int(match[1]) for match in found if match})

    def watts(self, index: int) -> float | None:
        """From powerN_input, else powerN_average."""
        for ending in ("input", "average"):
            microwatts = self.value(f"power{index}_{ending}")
            if microwatts is not None:
                return microwatts / 1e6
        return None

    def rail_watts(self, index: int) -> float | None:
        """Voltage times current of one channel; None if either is missing."""
        millivolts, milliamperes = self.value(f"in{index}_input"), self.value(f"curr{index}_input")
        return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6

    def joules(self, index: int) -> float | None:
        """From energyN_input."""
        microjoules = self.value(f"energy{index}_input")
        return None if microjoules is None else microjoules / 1e6

    def rate_hz(self, default: float) -> float:
        """From update_interval, in milliseconds, where the chip has it."""
        interval_ms = self.value("update_interval")
        return 1000 / interval_ms if interval_ms and interval_ms > 0 else default

    @property
    def bus_id(self) -> str:
        """Of the device behind the chip ("1-0040", "0000:03:00.0"): it lasts, hwmon numbers change with each start."""
        try:
            return (self.folder / "device").resolve().name
        except (OSError, RuntimeError):
            return self.folder.name


def chips(system: System) -> list[Chip]:
    """All chips with a readable name. Batteries and supplies are listed here too; see power_supply.py for them."""
    found = []
    for path in system.glob("/sys/class/hwmon/hwmon*/name"):
        name = system.read_text(path)
        if name and name.isprintable() and len(name) <= _LONGEST_LABEL:
            found.append(Chip(system, path.parent, name))
    return found
