"""The simulated machine's sensors: lag, noise and steps, and the files and command output that carry them.

Formats are the kernel's (sysfs class power_supply, thermal, powercap) and the firmware tool's (`vcgencmd`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from support.simulated_machine.physics import SensorSpec

_RAIL_SHARES = {  # of the board's power, by rail (assumption); the real list has twelve rails with both readings
    "3V7_WL_SW": (3.7, 0.04), "3V3_SYS": (3.3, 0.08), "1V8_SYS": (1.8, 0.10), "DDR_VDD2": (1.1, 0.08),
    "DDR_VDDQ": (0.6, 0.02), "1V1_SYS": (1.1, 0.08), "0V8_SW": (0.8, 0.10), "VDD_CORE": (0.9, 0.44),
    "3V3_DAC": (3.3, 0.01), "3V3_ADC": (3.3, 0.01), "0V8_AON": (0.8, 0.02), "HDMI": (5.0, 0.02),
}  # fmt: skip
RAPL_RANGE_UJ = 262_143_328_850


class Sensors:
    """Told the truth at every step of the simulation; writes what a program would see."""

    def __init__(self, spec: SensorSpec, root: Path, seed: int) -> None:
        self.spec, self.root = spec, root
        self.lost: set[str] = set()  # "power", "temperature": files vanish, commands fail
        self.throttled_bits = 0
        self.on_battery = spec.power.startswith("battery")
        self._random = random.Random(seed)
        self._smooth_w: float | None = None
        self._smooth_c: float | None = None
        self._shown_w = 0.0
        self._joules = 0.0
        self._next_power_s = 0.0
        self._written: dict[Path, str] = {}

    def step(self, now_s: float, dt_s: float, watts: float, celsius: float, percent: float | None) -> None:
        """One step of the simulation; refreshes what has become due."""
        spec = self.spec
        self._smooth_w = _follow(self._smooth_w, watts, dt_s, spec.power_lag_s)
        self._smooth_c = _follow(self._smooth_c, celsius, dt_s, spec.temperature_lag_s)
        self._joules += watts * dt_s * (1 + self._random.gauss(0, spec.power_noise) * 0.2)
        if now_s >= self._next_power_s:
            self._next_power_s = now_s + spec.power_every_s
            self._shown_w = max(0.0, self._smooth_w * (1 + self._random.gauss(0, spec.power_noise)))
        self._percent = percent

    def write(self) -> None:
        """Bring the files up to date (called before somebody looks)."""
        self._write_thermal()
        if self.spec.power.startswith("battery"):
            self._write_battery()
        elif self.spec.power == "rapl":
            self._write_rapl()

    def command(self, arguments: Sequence[str]) -> str | None:
        """`vcgencmd`, on the board that has it."""
        if self.spec.power != "pmic" or not arguments or arguments[0] != "vcgencmd":
            return None
        if list(arguments[1:]) == ["get_throttled"]:
            return f"throttled=0x{self.throttled_bits:x}\n"
        if list(arguments[1:]) == ["measure_temp"] and "temperature" not in self.lost:
            return f"temp={(self._celsius() // 0.1) * 0.1:.1f}'C\n"
        if list(arguments[1:]) == ["pmic_read_adc"] and "power" not in self.lost:
            return self._adc()
        return None

    def _adc(self) -> str:
        amperes = [
            f"{name + '_A':>16} current({i})={self._shown_w * share / volts:.8f}A"
            for i, (name, (volts, share)) in enumerate(_RAIL_SHARES.items())
        ]
        volts = [f"{name + '_V':>16} volt({i + 12})={v:.8f}V" for i, (name, (v, _)) in enumerate(_RAIL_SHARES.items())]
        external = ["       EXT5V_V volt(24)=5.15093000V", "        BATT_V volt(25)=0.00000000V"]
        return "\n".join([*amperes, *volts, *external])

    def _celsius(self) -> float:
        noisy = (self._smooth_c or 0.0) + self._random.gauss(0, self.spec.temperature_noise_c)
        return round(noisy / self.spec.temperature_step_c) * self.spec.temperature_step_c

    def _write_thermal(self) -> None:
        zone = self.root / "sys/class/thermal/thermal_zone0"
        kind = "x86_pkg_temp" if self.spec.power in ("rapl", "battery_power") else "cpu-thermal"
        self._put(zone / "type", kind)
        self._put(zone / "temp", None if "temperature" in self.lost else str(round(1000 * self._celsius())))

    def _write_battery(self) -> None:
        supply = self.root / "sys/class/power_supply"
        battery = supply / ("battery" if self.spec.power == "battery_current" else "BAT0")
        gone = "power" in self.lost
        self._put(supply / "AC/type", "Mains")
        self._put(supply / "AC/online", "0" if self.on_battery else "1")
        self._put(battery / "type", "Battery")
        self._put(battery / "present", "1")
        self._put(battery / "status", "Discharging" if self.on_battery else "Full")
        self._put(battery / "capacity", str(math.ceil(self._percent or 0)))
        volts = 3.85 if self.spec.power == "battery_current" else 11.4
        self._put(battery / "voltage_now", str(round(1e6 * volts)))
        watts = self._shown_w if self.on_battery else 0.0
        if self.spec.power == "battery_current":
            self._put(battery / "current_now", None if gone else str(-round(1e6 * watts / volts)))
        else:
            self._put(battery / "power_now", None if gone else str(round(1e6 * watts, -4))[:-2])

    def _write_rapl(self) -> None:
        zone = self.root / "sys/class/powercap/intel-rapl:0"
        self._put(zone / "name", "package-0")
        self._put(zone / "max_energy_range_uj", str(RAPL_RANGE_UJ))
        start = RAPL_RANGE_UJ - 60_000_000  # wraps within the first minute
        counted = None if "power" in self.lost else str(round(start + 1e6 * self._joules) % RAPL_RANGE_UJ)
        self._put(zone / "energy_uj", counted)

    def _put(self, path: Path, text: str | None) -> None:
        if self._written.get(path) == text and (text is None or path.exists()):
            return
        if text is None:
            path.unlink(missing_ok=True)
            self._written.pop(path, None)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        self._written[path] = text


def _follow(value: float | None, target: float, dt_s: float, tau_s: float) -> float:
    """First-order lag."""
    if value is None or tau_s <= 0:
        return target
    return value + (target - value) * (1 - math.exp(-dt_s / tau_s))
