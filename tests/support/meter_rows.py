"""One row per kind of meter for the conformance test: how a machine shows watts and joules, and what may break.

A row writes what the true driver would write for a given power and energy; the test knows the physics and asks the
meter. `breakable` are the files or commands without which the meter cannot answer.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import recorded_trees as trees
from support.recorded_trees import RecordedMachine
from wattwise_devices.profile import Profile

IDLE_W, CORE_W = 3.0, 2.0
PROFILE = Profile(
    name="test-board", title="Board of the tests", boards=("x",), cpus=(), platforms=(), idle_w=IDLE_W,
    busy_core_w={"performance": CORE_W}, read_bytes_per_s=None, throttle_c=None, stop_c=None, supply_w=None,
    battery_wh=None, estimated=(),
)  # fmt: skip
RAPL = "/sys/class/powercap"
SUPPLY = "/sys/class/power_supply"
HWMON = "/sys/class/hwmon"
PMIC = ("vcgencmd", "pmic_read_adc")
POWERMETRICS = ("powermetrics", "--samplers", "cpu_power", "-n", "1", "-i", "200")
Broken = str | tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """show(machine, watts, joules): joules since the start. counts: has energy, else power. slow: its times are so
    many times longer. watt_step, joule_step: of the format. standstill_s: stale after it; None: a steady value is
    normal. range_j: where the count starts over. frozen: what stands still when the source hangs."""

    name: str
    scope: str
    build: Callable[[Path], RecordedMachine]
    show: Callable[[RecordedMachine, float, float], None]
    breakable: tuple[Broken, ...]
    counts: bool
    joule_step: float = 0.0
    watt_step: float = 0.0
    slow: float = 1.0
    standstill_s: float | None = None
    range_j: float | None = None
    profile: Profile | None = None
    module: Callable[[RecordedMachine], Any] | None = None

    def __str__(self) -> str:
        return f"{self.build.__name__}-{self.name}"


def _rapl(zone: str, range_uj: int, start_uj: int) -> Callable[[RecordedMachine, float, float], None]:
    """The driver multiplies a 32-bit count of steps; rounding as in range_uj / (2^32 - 1)."""
    step_uj = range_uj / (2**32 - 1)

    def show(machine: RecordedMachine, watts: float, joules: float) -> None:
        steps = round((start_uj + 1e6 * joules) / step_uj) % 2**32
        machine.put(f"{RAPL}/{zone}/energy_uj", int(steps * step_uj))

    return show


def _two_sockets(machine: RecordedMachine, watts: float, joules: float) -> None:
    """40 % and 30 % in the packages, 20 % and 10 % in their memories."""
    for zone, range_uj, share in (
        ("intel-rapl:0", trees.RAPL_PACKAGE_RANGE_UJ, 0.4), ("intel-rapl:1", trees.RAPL_PACKAGE_RANGE_UJ, 0.3),
        ("intel-rapl:0:0", trees.RAPL_DRAM_RANGE_UJ, 0.2), ("intel-rapl:1:0", trees.RAPL_DRAM_RANGE_UJ, 0.1),
    ):  # fmt: skip
        _rapl(zone, range_uj, 5_000_000)(machine, watts, share * joules)


def _battery(**files: Callable[[float, float], int]) -> Callable[[RecordedMachine, float, float], None]:
    def show(machine: RecordedMachine, watts: float, joules: float) -> None:
        for name, value in files.items():
            machine.put(f"{SUPPLY}/BAT0/{name}", value(watts, joules))

    return show


def _laptop_of(remove: tuple[str, ...], **add: str | int) -> Callable[[Path], RecordedMachine]:
    def laptop(root: Path) -> RecordedMachine:
        machine = RecordedMachine(root)
        trees.laptop_battery(machine, "BAT0", **add)
        for name in remove:
            machine.remove(f"{SUPPLY}/BAT0/{name}")
        machine.put_all(f"{SUPPLY}/AC", {"type": "Mains", "online": 0})
        return machine

    return laptop


def _two_batteries(root: Path) -> RecordedMachine:
    machine = RecordedMachine(root)
    trees.laptop_battery(machine, "BAT0")
    trees.laptop_battery(machine, "BAT1", status="Not charging", power_now=0)
    return machine


def _phone(machine: RecordedMachine, watts: float, joules: float) -> None:
    machine.put(f"{SUPPLY}/battery/voltage_now", 3_850_000)
    machine.put(f"{SUPPLY}/battery/current_now", -round(1e6 * watts / 3.85))


def _pmic(machine: RecordedMachine, watts: float, joules: float) -> None:
    machine.commands[PMIC] = trees.pmic_text(watts)


def _powermetrics(machine: RecordedMachine, watts: float, joules: float) -> None:
    machine.commands[POWERMETRICS] = trees.powermetrics_text(watts)


def _file(path: str, scale: float) -> Callable[[RecordedMachine, float, float], None]:
    def show(machine: RecordedMachine, watts: float, joules: float) -> None:
        machine.put(path, round(watts * scale))

    return show


def _rail(index: int, millivolts: int, chip: int) -> Callable[[RecordedMachine, float, float], None]:
    def show(machine: RecordedMachine, watts: float, joules: float) -> None:
        machine.put(f"{HWMON}/hwmon{chip}/in{index}_input", millivolts)
        machine.put(f"{HWMON}/hwmon{chip}/curr{index}_input", round(1e6 * watts / millivolts))

    return show


def _agx(machine: RecordedMachine, watts: float, joules: float) -> None:
    """Half, three tenths and a fifth on the three inputs."""
    for index, (millivolts, share) in enumerate(((19200, 0.5), (19200, 0.3), (5000, 0.2)), start=1):
        _rail(index, millivolts, 3)(machine, share * watts, joules)


def _bare_ina3221(root: Path) -> RecordedMachine:
    machine = RecordedMachine(root)
    trees.hwmon(machine, 0, "ina3221", {"in1_input": 12000, "curr1_input": 500, "in1_enable": 1})
    return machine


def _intel_card(root: Path) -> RecordedMachine:
    machine = RecordedMachine(root)
    trees.hwmon(machine, 0, "i915", {"energy1_input": 12_000_000, "in0_input": 700})
    return machine


def _amd_energy(root: Path) -> RecordedMachine:
    machine = RecordedMachine(root)
    trees.hwmon(machine, 0, "amd_energy", {
        "energy1_label": "Ecore000", "energy1_input": 1_000_000,
        "energy2_label": "Esocket0", "energy2_input": 7_000_000,
    })  # fmt: skip
    return machine


def _counted(path: str, start_uj: int) -> Callable[[RecordedMachine, float, float], None]:
    def show(machine: RecordedMachine, watts: float, joules: float) -> None:
        machine.put(path, start_uj + round(1e6 * joules))

    return show


def nvidia_desktop(root: Path) -> RecordedMachine:
    """The kernel's driver is loaded; the card answers through the library."""
    machine = RecordedMachine(root)
    machine.put("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.51")
    machine.put("/made/nvml/power_mw", 9000)
    machine.put("/made/nvml/energy_mj", 500_000)
    return machine


def fake_nvml(*, counter: bool) -> Callable[[RecordedMachine], Any]:
    """A module with NVML's names whose card shows two files; an unreadable one is an error of the library."""

    class NVMLError(Exception):
        pass

    def make(machine: RecordedMachine) -> Any:
        def read(name: str) -> int:
            text = machine.system.read_text(f"/made/nvml/{name}") or ""
            if not (text.isascii() and text.isdecimal()):
                raise NVMLError("GPU is lost")
            return int(text)

        def energy(handle: str) -> int:
            if not counter:
                raise NVMLError("Not Supported")
            return read("energy_mj")

        module: Any = types.ModuleType("pynvml")
        module.NVMLError = NVMLError
        module.nvmlInit = lambda: None
        module.nvmlDeviceGetCount = lambda: 1
        module.nvmlDeviceGetHandleByIndex = lambda index: f"card {index}"
        module.nvmlDeviceGetPowerUsage = lambda handle: read("power_mw")
        module.nvmlDeviceGetTotalEnergyConsumption = energy
        return module

    return make


def _nvml(machine: RecordedMachine, watts: float, joules: float) -> None:
    machine.put("/made/nvml/power_mw", round(1000 * watts))
    machine.put("/made/nvml/energy_mj", 500_000 + round(1000 * joules))


def _modelled(root: Path) -> RecordedMachine:
    machine = trees.virtual_machine(root)
    machine.now_s = 0.0
    return machine


def _busy(machine: RecordedMachine, watts: float, joules: float) -> None:
    """So many busy core-seconds that idle and busy watts give these joules."""
    core_s = (joules - IDLE_W * machine.now_s) / CORE_W
    machine.put("/proc/stat", trees.proc_stat([10.0 + 0.75 * core_s, 20.0 + 0.25 * core_s]))


_UWH = 3600e-6  # joules
ROWS = (
    Row(name="rapl:package-0", scope="package", build=trees.intel_laptop, counts=True, joule_step=62e-6,
        show=_rapl("intel-rapl:0", trees.RAPL_PACKAGE_RANGE_UJ, 81_523_443_202), standstill_s=2.0,
        range_j=262144.0, breakable=(f"{RAPL}/intel-rapl:0/energy_uj",)),
    Row(name="rapl:package-0/core", scope="cores", build=trees.intel_laptop, counts=True, joule_step=62e-6,
        show=_rapl("intel-rapl:0:0", trees.RAPL_PACKAGE_RANGE_UJ, 20_112_000_117), standstill_s=2.0,
        range_j=262144.0, breakable=(f"{RAPL}/intel-rapl:0:0/energy_uj",)),
    Row(name="rapl:psys", scope="board", build=trees.intel_laptop, counts=True, joule_step=62e-6,
        show=_rapl("intel-rapl:1", trees.RAPL_PACKAGE_RANGE_UJ, 120_000_000_000), standstill_s=2.0,
        range_j=262144.0, breakable=(f"{RAPL}/intel-rapl:1/energy_uj",)),
    Row(name="rapl:package-1/dram", scope="dram", build=trees.two_socket_server, counts=True, joule_step=16e-6,
        show=_rapl("intel-rapl:1:0", trees.RAPL_DRAM_RANGE_UJ, 9_000_000), standstill_s=2.0,
        range_j=65713.0, breakable=(f"{RAPL}/intel-rapl:1:0/energy_uj",)),
    Row(name="rapl:packages", scope="package", build=trees.two_socket_server, counts=True, joule_step=160e-6,
        show=_two_sockets, standstill_s=None,
        breakable=(f"{RAPL}/intel-rapl:0/energy_uj", f"{RAPL}/intel-rapl:1:0/energy_uj")),
    Row(name="battery", scope="battery", build=_laptop_of(()), counts=False, watt_step=1e-6, slow=20,
        show=_battery(power_now=lambda w, j: round(1e6 * w)), standstill_s=120,
        breakable=(f"{SUPPLY}/BAT0/power_now",)),
    Row(name="battery", scope="battery", build=_laptop_of(("power_now", "energy_now"), current_now=700_000),
        counts=False, watt_step=2e-5, slow=20, standstill_s=120,
        show=_battery(current_now=lambda w, j: round(1e6 * w / 11.9), voltage_now=lambda w, j: 11_900_000),
        breakable=(f"{SUPPLY}/BAT0/current_now", f"{SUPPLY}/BAT0/voltage_now")),
    Row(name="battery", scope="battery", build=_laptop_of(("power_now",)), counts=True, joule_step=36, slow=40,
        show=_battery(energy_now=lambda w, j: round((36_210_000 - j / _UWH) / 10_000) * 10_000), standstill_s=120,
        breakable=(f"{SUPPLY}/BAT0/energy_now",)),
    Row(name="battery", scope="battery", slow=40, counts=True, joule_step=1e-3 * 3600 * 11.4, standstill_s=120,
        build=_laptop_of(("power_now", "energy_now"), charge_now=3_100_000),
        show=_battery(charge_now=lambda w, j: round((3_100_000 - j / 11.4 / _UWH) / 1000) * 1000),
        breakable=(f"{SUPPLY}/BAT0/charge_now",)),
    Row(name="battery", scope="battery", build=_two_batteries, counts=False, watt_step=1e-6, slow=20,
        show=_battery(power_now=lambda w, j: round(1e6 * w)), standstill_s=120,
        breakable=(f"{SUPPLY}/BAT0/power_now",)),
    Row(name="battery", scope="battery", build=trees.phone, counts=False, watt_step=1e-5, slow=20, show=_phone,
        standstill_s=120, breakable=(f"{SUPPLY}/battery/current_now", f"{SUPPLY}/battery/voltage_now")),
    Row(name="pmic", scope="board", build=trees.raspberry_pi_5, counts=False, watt_step=1e-6, show=_pmic,
        standstill_s=5, breakable=(PMIC,)),
    Row(name="hwmon:ina219", scope="rail", build=trees.pi_4_with_ina219, counts=False, watt_step=1e-6,
        show=_file(f"{HWMON}/hwmon2/power1_input", 1e6), standstill_s=30,
        breakable=(f"{HWMON}/hwmon2/power1_input",)),
    Row(name="hwmon:ina3221", scope="rail", build=_bare_ina3221, counts=False, watt_step=0.012,
        show=_rail(1, 12000, 0), standstill_s=30,
        breakable=(f"{HWMON}/hwmon0/in1_input", f"{HWMON}/hwmon0/curr1_input")),
    Row(name="hwmon:power_meter", scope="board", build=trees.two_socket_server, counts=False, watt_step=1e-6,
        show=_file(f"{HWMON}/hwmon0/power1_average", 1e6), breakable=(f"{HWMON}/hwmon0/power1_average",)),
    Row(name="hwmon:i915", scope="gpu", build=_intel_card, counts=True, joule_step=1e-6, standstill_s=2.0,
        show=_counted(f"{HWMON}/hwmon0/energy1_input", 12_000_000), breakable=(f"{HWMON}/hwmon0/energy1_input",)),
    Row(name="jetson:VDD_IN", scope="board", build=trees.jetson_orin, counts=False, watt_step=0.006,
        show=_rail(1, 5056, 4), standstill_s=30,
        breakable=(f"{HWMON}/hwmon4/in1_input", f"{HWMON}/hwmon4/curr1_input")),
    Row(name="jetson:inputs", scope="board", build=trees.jetson_agx_orin, counts=False, watt_step=0.06, show=_agx,
        standstill_s=30, breakable=(f"{HWMON}/hwmon3/curr1_input", f"{HWMON}/hwmon3/in3_input")),
    Row(name="jetson:POM_5V_IN", scope="board", build=trees.jetson_nano, counts=False, watt_step=0.001,
        show=_file("/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input", 1e3), standstill_s=30,
        breakable=("/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input",)),
    Row(name="amdgpu", scope="gpu", build=trees.amd_desktop, counts=False, watt_step=1e-6,
        show=_file(f"{HWMON}/hwmon2/power1_average", 1e6), breakable=(f"{HWMON}/hwmon2/power1_average",)),
    Row(name="amd:socket0", scope="package", build=_amd_energy, counts=True, joule_step=16e-6, standstill_s=2.0,
        show=_counted(f"{HWMON}/hwmon0/energy2_input", 7_000_000), breakable=(f"{HWMON}/hwmon0/energy2_input",)),
    Row(name="nvidia:0", scope="gpu", build=nvidia_desktop, counts=True, joule_step=1e-3, show=_nvml,
        standstill_s=2.0, breakable=("/made/nvml/energy_mj",), module=fake_nvml(counter=True)),
    Row(name="nvidia:0", scope="gpu", build=nvidia_desktop, counts=False, watt_step=1e-3, show=_nvml,
        breakable=("/made/nvml/power_mw",), module=fake_nvml(counter=False)),
    Row(name="powermetrics", scope="package", build=trees.macbook, counts=False, watt_step=1e-3, show=_powermetrics,
        breakable=(POWERMETRICS,)),
    Row(name="model:test-board", scope="board", build=_modelled, counts=True, joule_step=0.02 * CORE_W, show=_busy,
        profile=PROFILE, breakable=("/proc/stat",)),
)  # fmt: skip
