"""Machines as files and command output in the formats that real ones have, built in a temporary folder.

`RecordedMachine` holds the tree, the commands and a clock that only moves when told. The builders below write what
stands on such a machine; the numbers are plausible, names and units are those of the drivers. Formats: the kernel's
documentation of powercap, power_supply, hwmon (ina2xx, ina3221, k10temp, coretemp, amdgpu), thermal and cpufreq;
Raspberry Pi's of vcgencmd; powermetrics(1); NVIDIA's Jetson developer guide.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from wattwise_devices.system import System

RAPL_PACKAGE_RANGE_UJ = 262143328850  # 2^32 - 1 steps of 61.035 microjoules, as the driver rounds them
RAPL_DRAM_RANGE_UJ = 65712999613  # 2^32 - 1 steps of 15.3 microjoules

PI5_RAILS = {  # volts and share of the power, of the twelve rails with both values
    "3V7_WL_SW": (3.7, 0.04), "3V3_SYS": (3.31, 0.08), "1V8_SYS": (1.8, 0.10), "DDR_VDD2": (1.1, 0.08),
    "DDR_VDDQ": (0.61, 0.02), "1V1_SYS": (1.1, 0.08), "0V8_SW": (0.8, 0.10), "VDD_CORE": (0.88, 0.44),
    "3V3_DAC": (3.31, 0.01), "3V3_ADC": (3.31, 0.01), "0V8_AON": (0.8, 0.02), "HDMI": (5.1, 0.02),
}  # fmt: skip


class RecordedMachine:
    """A root folder, commands with their output (None: the command fails), and a clock."""

    def __init__(self, root: Path) -> None:
        self.root, self.now_s = root, 1000.0
        self.commands: dict[tuple[str, ...], str | None] = {}
        self.asked: list[tuple[str, ...]] = []
        self.system = System(root=root, run=self._run, clock_s=lambda: self.now_s)

    def put(self, path: str, text: str | int) -> None:
        """Write a file as sysfs does, with a newline."""
        file = self.root / path.lstrip("/")
        if file.is_dir():
            file.rmdir()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def put_all(self, folder: str, files: dict[str, str | int]) -> None:
        """Several files of one folder."""
        for name, text in files.items():
            self.put(f"{folder}/{name}", text)

    def remove(self, path: str) -> None:
        """A file or a folder, gone."""
        target = self.root / path.lstrip("/")
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    def deny(self, path: str) -> None:
        """The file is listed but opening it fails, for root too: a folder stands in its place."""
        self.remove(path)
        (self.root / path.lstrip("/")).mkdir(parents=True)

    def _run(self, arguments: Sequence[str]) -> str | None:
        self.asked.append(tuple(arguments))
        return self.commands.get(tuple(arguments))


def intel_laptop(root: Path) -> RecordedMachine:
    """RAPL with core, uncore and psys; one battery by power_now; coretemp and thermal zones."""
    machine = RecordedMachine(root)
    _rapl_zone(machine, "intel-rapl:0", "package-0", RAPL_PACKAGE_RANGE_UJ, 81_523_443_202)
    _rapl_zone(machine, "intel-rapl:0:0", "core", RAPL_PACKAGE_RANGE_UJ, 20_112_000_117)
    _rapl_zone(machine, "intel-rapl:0:1", "uncore", RAPL_PACKAGE_RANGE_UJ, 1_334_721_001)
    _rapl_zone(machine, "intel-rapl:1", "psys", RAPL_PACKAGE_RANGE_UJ, 120_000_000_000)
    _rapl_zone(machine, "intel-rapl-mmio:0", "package-0", RAPL_PACKAGE_RANGE_UJ, 81_523_443_202)
    machine.put("/sys/class/powercap/intel-rapl/enabled", 1)
    laptop_battery(machine, "BAT0")
    machine.put_all("/sys/class/power_supply/AC", {"type": "Mains", "online": 0})
    thermal_zones(machine, {"INT3400 Thermal": 20000, "acpitz": 27800, "x86_pkg_temp": 61000, "iwlwifi_1": 70000})
    hwmon(machine, 4, "coretemp", {
        "temp1_label": "Package id 0", "temp1_input": 62000, "temp2_label": "Core 0", "temp2_input": 59000,
    })  # fmt: skip
    hwmon(machine, 3, "BAT0", {"in0_input": 11900, "power1_input": 8120000})
    hwmon(machine, 2, "nvme", {"temp1_input": 88850, "temp1_label": "Composite"})
    for cpu in range(4):
        machine.put_all(f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle", {
            "core_throttle_count": 3, "package_throttle_count": 5,
        })  # fmt: skip
        cpufreq(machine, cpu, 1_800_000 + 100_000 * cpu, 4_400_000)
    machine.put("/proc/stat", proc_stat([100.0, 50.0, 0.0, 0.0]))
    return machine


def two_socket_server(root: Path) -> RecordedMachine:
    """Two packages, each with its own memory counter; no battery, no psys."""
    machine = RecordedMachine(root)
    for socket in (0, 1):
        _rapl_zone(machine, f"intel-rapl:{socket}", f"package-{socket}", RAPL_PACKAGE_RANGE_UJ, 7_000_000)
        _rapl_zone(machine, f"intel-rapl:{socket}:0", "dram", RAPL_DRAM_RANGE_UJ, 9_000_000)
    hwmon(machine, 0, "power_meter", {"power1_average": 210_000_000, "power1_average_interval": 1000})
    return machine


def amd_desktop(root: Path) -> RecordedMachine:
    """A Zen processor's package and core counters, k10temp, a Radeon card, the board's sensors."""
    machine = RecordedMachine(root)
    _rapl_zone(machine, "intel-rapl:0", "package-0", 65532610987, 4_000_000)
    _rapl_zone(machine, "intel-rapl:0:0", "core", 65532610987, 3_000_000)
    hwmon(machine, 1, "k10temp", {
        "temp1_label": "Tctl", "temp1_input": 75500, "temp3_label": "Tccd1", "temp3_input": 55500,
    })  # fmt: skip
    hwmon(machine, 2, "amdgpu", {
        "power1_average": 35_000_000, "power1_cap": 300_000_000, "power1_label": "PPT", "in0_input": 800,
        "in0_label": "vddgfx", "temp1_label": "edge", "temp1_input": 48000,
    })  # fmt: skip
    hwmon(machine, 3, "nct6798", {"in0_input": 1016, "temp1_label": "SYSTIN", "temp1_input": 33000})
    return machine


def raspberry_pi_5(root: Path) -> RecordedMachine:
    """The PMIC and the throttle flags through vcgencmd, cpu-thermal, rpi_volt."""
    machine = RecordedMachine(root)
    machine.put("/proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    machine.commands["vcgencmd", "pmic_read_adc"] = pmic_text(4.0)
    machine.commands["vcgencmd", "get_throttled"] = "throttled=0x0\n"
    thermal_zones(machine, {"cpu-thermal": 51250})
    hwmon(machine, 0, "cpu_thermal", {"temp1_input": 51250})
    hwmon(machine, 1, "rp1_adc", {"in1_input": 1480, "temp1_input": 44000})
    hwmon(machine, 2, "rpi_volt", {"in0_lcrit_alarm": 0})
    cpufreq(machine, 0, 1_500_000, 2_400_000)
    return machine


def pi_4_with_ina219(root: Path) -> RecordedMachine:
    """No PMIC to read; somebody wired an INA219 to the supply."""
    machine = RecordedMachine(root)
    machine.put("/proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    machine.commands["vcgencmd", "get_throttled"] = "throttled=0x50005\n"
    hwmon(machine, 0, "cpu_thermal", {"temp1_input": 64270})
    hwmon(machine, 2, "ina219", {
        "in0_input": 8, "in1_input": 5116, "curr1_input": 782, "power1_input": 4_000_000, "shunt_resistor": 10000,
        "update_interval": 69,
    })  # fmt: skip
    thermal_zones(machine, {"cpu-thermal": 64270})
    return machine


def jetson_orin(root: Path) -> RecordedMachine:
    """Orin Nano or NX: one INA3221 with the module's input."""
    machine = RecordedMachine(root)
    hwmon(machine, 4, "ina3221", {
        "in1_label": "VDD_IN", "in1_input": 5056, "curr1_input": 944, "in1_enable": 1,
        "in2_label": "VDD_CPU_GPU_CV", "in2_input": 5056, "curr2_input": 168, "in2_enable": 1,
        "in3_label": "VDD_SOC", "in3_input": 5056, "curr3_input": 272, "in3_enable": 1,
        "in4_input": 5, "in7_label": "sum of shunt voltages", "in7_input": 7,
    })  # fmt: skip
    thermal_zones(machine, {"cpu-thermal": 48500, "gpu-thermal": 46000, "soc0-thermal": 47000, "tj-thermal": 48600})
    return machine


def jetson_agx_orin(root: Path) -> RecordedMachine:
    """Two monitors and no rail for the whole: the module's inputs have to be added."""
    machine = RecordedMachine(root)
    hwmon(machine, 3, "ina3221", {
        "in1_label": "VDD_GPU_SOC", "in1_input": 19200, "curr1_input": 200, "in1_enable": 1,
        "in2_label": "VDD_CPU_CV", "in2_input": 19200, "curr2_input": 100, "in2_enable": 1,
        "in3_label": "VIN_SYS_5V0", "in3_input": 5000, "curr3_input": 800, "in3_enable": 1,
    })  # fmt: skip
    hwmon(machine, 4, "ina3221", {
        "in1_label": "NC", "in1_input": 0, "curr1_input": 0, "in1_enable": 0,
        "in2_label": "VDDQ_VDD2_1V8AO", "in2_input": 5000, "curr2_input": 300, "in2_enable": 1,
    })  # fmt: skip
    return machine


def jetson_nano(root: Path) -> RecordedMachine:
    """The first Nano: iio folders of NVIDIA's own driver, milliwatts."""
    machine = RecordedMachine(root)
    for index, (rail, milliwatts) in enumerate({"POM_5V_IN": 2100, "POM_5V_GPU": 80, "POM_5V_CPU": 500}.items()):
        machine.put_all("/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0", {
            f"rail_name_{index}": rail, f"in_power{index}_input": milliwatts,
            f"in_voltage{index}_input": 5000, f"in_current{index}_input": milliwatts // 5,
        })  # fmt: skip
    return machine


def phone(root: Path) -> RecordedMachine:
    """Termux on a phone that lets its battery be read: current and voltage, a negative current discharges."""
    machine = RecordedMachine(root)
    machine.put_all("/sys/class/power_supply/battery", {
        "type": "Battery", "present": 1, "status": "Discharging", "capacity": 64, "voltage_now": 3_850_000,
        "current_now": -520_000, "charge_full": 4_900_000, "charge_counter": 3_100_000, "temp": 312,
    })  # fmt: skip
    machine.put_all("/sys/class/power_supply/usb", {"type": "USB", "online": 0, "voltage_now": 0})
    machine.put_all("/sys/class/power_supply/wireless", {"type": "Wireless", "online": 0})
    thermal_zones(machine, {"battery": 31200, "cpu-0-0-usr": 55000, "cpu-1-0-usr": 0, "pa-therm0": 71000,
                            "gpuss-0-usr": 51000, "modem1-usr": -40000})  # fmt: skip
    cpufreq(machine, 0, 1_440_000, 1_804_800)
    cpufreq(machine, 4, 2_419_200, 2_841_600)
    machine.put("/sys/class/thermal/cooling_device0/type", "thermal-cpufreq-0")
    machine.put("/sys/class/thermal/cooling_device0/cur_state", 0)
    return machine


def virtual_machine(root: Path) -> RecordedMachine:
    """Nothing to read at all."""
    machine = RecordedMachine(root)
    for folder in ("power_supply", "thermal"):
        (root / "sys/class" / folder).mkdir(parents=True)
    machine.put("/proc/stat", proc_stat([10.0, 20.0]))
    return machine


def macbook(root: Path) -> RecordedMachine:
    """macOS on Apple's own processor, run as root."""
    machine = RecordedMachine(root)
    machine.put("/System/Library/CoreServices/SystemVersion.plist", "<plist/>")
    machine.commands["powermetrics", "--samplers", "cpu_power", "-n", "1", "-i", "200"] = powermetrics_text(6.5)
    return machine


def laptop_battery(machine: RecordedMachine, name: str, **files: str | int) -> None:
    """An ACPI battery that tells power and energy."""
    standard: dict[str, str | int] = {
        "type": "Battery", "present": 1, "status": "Discharging", "capacity": 71, "voltage_now": 11_900_000,
        "voltage_min_design": 11_400_000, "power_now": 8_120_000, "energy_now": 36_210_000, "energy_full": 51_000_000,
        "energy_full_design": 57_000_000, "manufacturer": "SMP", "technology": "Li-poly",
    }  # fmt: skip
    machine.put_all(f"/sys/class/power_supply/{name}", {**standard, **files})


def thermal_zones(machine: RecordedMachine, zones: dict[str, int]) -> None:
    """Types and thousandths of a degree, numbered in this order."""
    for index, (kind, millidegrees) in enumerate(zones.items()):
        machine.put_all(f"/sys/class/thermal/thermal_zone{index}", {"type": kind, "temp": millidegrees})


def hwmon(machine: RecordedMachine, index: int, name: str, files: dict[str, str | int]) -> None:
    """One chip; its device is a folder as on an I2C bus."""
    folder = f"/sys/class/hwmon/hwmon{index}"
    machine.put_all(folder, {"name": name, **files})
    device = machine.root / f"sys/devices/made/{index}-0040"
    device.mkdir(parents=True, exist_ok=True)
    (machine.root / folder.lstrip("/") / "device").symlink_to(device)


def cpufreq(machine: RecordedMachine, policy: int, now_khz: int, max_khz: int) -> None:
    """One frequency domain."""
    machine.put_all(f"/sys/devices/system/cpu/cpufreq/policy{policy}", {
        "scaling_cur_freq": now_khz, "scaling_max_freq": max_khz, "cpuinfo_max_freq": max_khz,
        "scaling_governor": "schedutil",
    })  # fmt: skip


def proc_stat(busy_s: Sequence[float], idle_s: float = 500.0) -> str:
    """/proc/stat of as many CPUs, busy time given to user mode, ticks of a hundredth of a second."""
    rows = [(round(100 * busy), 0, 0, round(100 * idle_s), 0, 0, 0, 0, 0, 0) for busy in busy_s]
    total = [sum(column) for column in zip(*rows, strict=True)]
    lines = ["cpu  " + " ".join(map(str, total))]
    lines += [f"cpu{cpu} " + " ".join(map(str, row)) for cpu, row in enumerate(rows)]
    return "\n".join([*lines, "intr 8688370 0 9", "ctxt 33017", "btime 1790000000", "processes 2915"])


def pmic_text(watts: float) -> str:
    """vcgencmd pmic_read_adc on a Pi 5: currents first, then voltages, two rails without a current."""
    currents = [
        f"{name + '_A':>16} current({i})={watts * share / volts:.8f}A"
        for i, (name, (volts, share)) in enumerate(PI5_RAILS.items())
    ]
    voltages = [
        f"{name + '_V':>16} volt({i + 12})={volts:.8f}V" for i, (name, (volts, _)) in enumerate(PI5_RAILS.items())
    ]
    extra = ["         EXT5V_V volt(24)=5.15093000V", "          BATT_V volt(25)=0.00683760V"]
    return "\n".join([*currents, *voltages, *extra]) + "\n"


def powermetrics_text(watts: float) -> str:
    """The cpu_power sampler of an Apple processor."""
    milliwatts = round(1000 * watts)
    return (
        "Machine model: MacBookAir10,1\nOS version: 24A335\n\n"
        "*** Sampled system activity (Sat Nov 21 06:00:00 2026 +0000) (203.11ms elapsed) ***\n\n"
        "**** Processor usage ****\n\nE-Cluster HW active frequency: 1017 MHz\nCPU 0 frequency: 1062 MHz\n\n"
        f"CPU Power: {milliwatts - 40} mW\nGPU Power: 40 mW\nANE Power: 0 mW\n"
        f"Combined Power (CPU + GPU + ANE): {milliwatts} mW\n\n**** GPU usage ****\n\nGPU Power: 40 mW\n"
    )


def powermetrics_text_intel(watts: float) -> str:
    """The same sampler of an Intel Mac."""
    return f"**** Processor usage ****\n\nIntel energy model derived package power (CPUs+GT+SA): {watts:.2f}W\n\n"


def _rapl_zone(machine: RecordedMachine, zone: str, name: str, range_uj: int, energy_uj: int) -> None:
    machine.put_all(f"/sys/class/powercap/{zone}", {
        "name": name, "energy_uj": energy_uj, "max_energy_range_uj": range_uj, "enabled": 1,
        "constraint_0_name": "long_term", "constraint_0_power_limit_uw": 15_000_000,
    })  # fmt: skip
