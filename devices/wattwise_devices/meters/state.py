"""Temperature, throttling, clocks and where the power comes from: `StateReader(system).read()` gives a MachineState.

Most files are read at every call, commands and the processor's counts of throttling at most once a second. Which
sensors exist is looked up again every ten seconds, so that one that disappears is None and one that appears is found.
Formats: Documentation/driver-api/thermal, Documentation/hwmon/sysfs-interface.rst, Documentation/ABI/testing/
sysfs-devices-system-cpu, and Raspberry Pi's documentation of `vcgencmd get_throttled`.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

from wattwise_devices.meters.chips import chips
from wattwise_devices.meters.contract import MachineState
from wattwise_devices.meters.power_supply import Supplies, Supply
from wattwise_devices.meters.source import number
from wattwise_devices.system import System

_LOOK_AGAIN_S = 10.0
_COMMAND_EVERY_S = 1.0
_THERMAL_HOLD_S = 2.0  # how long a count of throttling that rose is called throttling now
_COLDEST_C, _HOTTEST_C = -40.0, 130.0
# Sensors on the processor or its chip. Others (batteries, disks, radios, boards) count only where there is none.
_CHIP_ZONES = re.compile(
    r"x86_pkg_temp|tcpu|cpu|gpu|soc|big|little|cluster|core|tj[-_]?thermal|package|apc\d|mtktscpu|exynos|pmgr", re.I
)
_OTHER_ZONES = re.compile(
    r"batt|charg|chg|wifi|wlan|iwl|nvme|modem|mdm|pa[-_]therm|int340|usb|camera|skin|pmic|bcl", re.I
)
_CHIP_DRIVERS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "scpi_sensors")
_VIRTUAL_LABELS = ("tctl",)  # shifted for the fan's sake on some processors; Tdie or Tccd is the truth
_NOW_BITS = {0: "under-voltage", 1: "frequency-capped", 2: "thermal", 3: "soft-temperature-limit"}
_BEFORE_SHIFT = 16
_COOLERS = ("processor", "cpufreq", "thermal-cpufreq", "cpu-")


@dataclass(slots=True)
class _Found:
    """Paths of the sensors that exist."""

    chip_temperatures: list[Path] = field(default_factory=list)
    other_temperatures: list[Path] = field(default_factory=list)
    clocks: list[Path] = field(default_factory=list)
    highest_clocks: list[Path] = field(default_factory=list)
    throttle_counts: list[Path] = field(default_factory=list)
    coolers: list[Path] = field(default_factory=list)
    voltage_alarms: list[Path] = field(default_factory=list)


class StateReader:
    """Keeps what has to be remembered between two looks. Safe to read from several threads; never raises."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._lock = threading.Lock()
        self._found, self._looked_s = _look(system), system.clock_s()
        self._supplies = Supplies(system)
        self._counts: dict[Path, int] = {}
        self._counted_s = float("-inf")
        self._thermal_until_s = float("-inf")
        self._has_firmware: bool | None = None
        self._bits: int | None = None
        self._bits_s = float("-inf")

    def read(self) -> MachineState:
        """Everything that can be known now."""
        with self._lock:
            now_s = self._system.clock_s()
            if now_s - self._looked_s >= _LOOK_AGAIN_S:
                self._found, self._looked_s = _look(self._system), now_s
            found = self._found
            now, before = self._throttled(now_s)
            return MachineState(
                time_s=now_s,
                temperature_c=self._hottest(found.chip_temperatures) or self._hottest(found.other_temperatures),
                battery_percent=_percent(self._supplies.batteries()),
                on_battery=self._supplies.on_battery(),
                cpu_mhz=self._highest_mhz(found.clocks),
                cpu_max_mhz=self._highest_mhz(found.highest_clocks),
                throttled=now,
                throttled_before=before,
            )

    def _hottest(self, paths: list[Path]) -> float | None:
        values = [number(self._system.read_text(path)) for path in paths]
        celsius = [value / 1000 for value in values if value is not None and value != 0]
        return max((c for c in celsius if _COLDEST_C < c < _HOTTEST_C), default=None)

    def _highest_mhz(self, paths: list[Path]) -> float | None:
        values = [number(self._system.read_text(path)) for path in paths]
        return max((value / 1000 for value in values if value is not None and value > 0), default=None)

    def _throttled(self, now_s: float) -> tuple[frozenset[str], frozenset[str]]:
        reasons: set[str] = set()
        bits = self._firmware_bits(now_s)
        before = frozenset[str]()
        if bits is not None:
            reasons |= {name for bit, name in _NOW_BITS.items() if bits >> bit & 1}
            before = frozenset(name for bit, name in _NOW_BITS.items() if bits >> (bit + _BEFORE_SHIFT) & 1)
        if any(self._system.read_int(path) == 1 for path in self._found.voltage_alarms):
            reasons.add("under-voltage")
        if self._counts_rose(now_s) or any((self._system.read_int(p) or 0) > 0 for p in self._found.coolers):
            reasons.add("thermal")
        return frozenset(reasons), before

    def _counts_rose(self, now_s: float) -> bool:
        """There are two files for each CPU, so they are read no more often than commands are started."""
        if now_s - self._counted_s < _COMMAND_EVERY_S:
            return now_s < self._thermal_until_s
        self._counted_s = now_s
        for path in self._found.throttle_counts:
            count = self._system.read_int(path)
            if count is None:
                continue
            if count > self._counts.get(path, count):
                self._thermal_until_s = now_s + _THERMAL_HOLD_S
            self._counts[path] = count
        return now_s < self._thermal_until_s

    def _firmware_bits(self, now_s: float) -> int | None:
        """Of a Raspberry Pi's firmware; a machine that has no such command is asked once."""
        if self._has_firmware is False or now_s - self._bits_s < _COMMAND_EVERY_S:
            return self._bits
        self._bits_s = now_s
        self._bits = parse_throttled(self._system.run(["vcgencmd", "get_throttled"]))
        if self._has_firmware is None:
            self._has_firmware = self._bits is not None
        return self._bits


def parse_throttled(text: str | None) -> int | None:
    """The bits of "throttled=0x50005"."""
    match = re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})", (text or "").strip())
    return int(match[1], 16) if match else None


def _percent(own: list[Supply]) -> float | None:
    """Of all batteries: by what they hold where they say so, else the mean."""
    full = [supply.micro("energy_full", "charge_full") for supply in own]
    now = [supply.micro("energy_now", "charge_now") for supply in own]
    percents = [supply.capacity_percent() for supply in own]
    if len(own) > 1 and all(f and n is not None for f, n in zip(full, now, strict=True)):
        return min(100.0, 100 * sum(n or 0.0 for n in now) / sum(f or 0.0 for f in full))
    known = [percent for percent in percents if percent is not None]
    return sum(known) / len(known) if known else None


def _look(system: System) -> _Found:
    found = _Found()
    for path in system.glob("/sys/class/thermal/thermal_zone*/type"):
        kind = system.read_text(path) or ""
        if _CHIP_ZONES.search(kind) and not _OTHER_ZONES.search(kind):
            found.chip_temperatures.append(path.parent / "temp")
        elif not _OTHER_ZONES.search(kind):
            found.other_temperatures.append(path.parent / "temp")
    for chip in chips(system):
        if chip.name in _CHIP_DRIVERS:
            found.chip_temperatures += _chip_temperatures(chip.folder, chip.indices("temp", "input"), system)
        elif chip.name == "rpi_volt":
            found.voltage_alarms.append(chip.folder / "in0_lcrit_alarm")
    for path in system.glob("/sys/class/thermal/cooling_device*/type"):
        if (system.read_text(path) or "").lower().startswith(_COOLERS):
            found.coolers.append(path.parent / "cur_state")
    cpu = "/sys/devices/system/cpu"
    found.clocks = system.glob(f"{cpu}/cpufreq/policy*/scaling_cur_freq")
    found.highest_clocks = system.glob(f"{cpu}/cpufreq/policy*/scaling_max_freq")
    found.throttle_counts = system.glob(f"{cpu}/cpu[0-9]*/thermal_throttle/*_throttle_count")
    return found


def _chip_temperatures(folder: Path, indices: list[int], system: System) -> list[Path]:
    labels = {index: (system.read_text(folder / f"temp{index}_label") or "").lower() for index in indices}
    real = [index for index in indices if labels[index] not in _VIRTUAL_LABELS]
    return [folder / f"temp{index}_input" for index in real or indices]
