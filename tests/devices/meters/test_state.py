"""Temperature, throttling, clocks and power source on recorded trees; what is expected stands in the trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import recorded_trees as trees
from wattwise_devices.meters import StateReader
from wattwise_devices.meters.state import parse_throttled

SUPPLY = "/sys/class/power_supply"
THROTTLED = ("vcgencmd", "get_throttled")


def test_laptop(tmp_path: Path) -> None:
    machine = trees.intel_laptop(tmp_path)
    reader = StateReader(machine.system)
    state = reader.read()
    assert state.temperature_c == 62.0, "coretemp's package, not the disk's 88.85 and not the radio's 70"
    assert state.battery_percent == 71 and state.on_battery is True
    assert state.cpu_mhz == 2100 and state.cpu_max_mhz == 4400
    assert state.throttled == frozenset() == state.throttled_before
    assert state.time_s == machine.now_s


def test_plugging_in_and_out_is_seen_at_the_next_look(tmp_path: Path) -> None:
    machine = trees.intel_laptop(tmp_path)
    reader = StateReader(machine.system)
    for online, status, expected in ((1, "Charging", False), (0, "Discharging", True), (1, "Not charging", False)):
        machine.put(f"{SUPPLY}/AC/online", online)
        machine.put(f"{SUPPLY}/BAT0/status", status)
        machine.now_s += 0.3
        assert reader.read().on_battery is expected


def test_throttle_counters_that_rise_mean_throttling_for_a_while(tmp_path: Path) -> None:
    machine = trees.intel_laptop(tmp_path)
    reader = StateReader(machine.system)
    reader.read()
    machine.now_s += 0.3
    assert reader.read().throttled == frozenset(), "counts from before the start say nothing about now"
    machine.put("/sys/devices/system/cpu/cpu2/thermal_throttle/core_throttle_count", 4)
    machine.now_s += 1.0
    assert reader.read().throttled == {"thermal"}
    machine.now_s += 1.0
    assert reader.read().throttled == {"thermal"}
    machine.now_s += 1.5
    assert reader.read().throttled == frozenset()


def test_pi_firmware_flags(tmp_path: Path) -> None:
    machine = trees.raspberry_pi_5(tmp_path)
    reader = StateReader(machine.system)
    assert reader.read().temperature_c == 51.25
    for bits, now, before in (
        (0x50005, {"under-voltage", "thermal"}, {"under-voltage", "thermal"}),
        (0x20002, {"frequency-capped"}, {"frequency-capped"}),
        (0xF0000, set(), {"under-voltage", "frequency-capped", "thermal", "soft-temperature-limit"}),
        (0x8, {"soft-temperature-limit"}, set()),
    ):
        machine.commands[THROTTLED] = f"throttled=0x{bits:x}\n"
        machine.now_s += 1.0
        state = reader.read()
        assert (state.throttled, state.throttled_before) == (now, before)


def test_commands_are_not_started_at_every_look(tmp_path: Path) -> None:
    machine = trees.raspberry_pi_5(tmp_path)
    reader = StateReader(machine.system)
    for _ in range(41):  # ten seconds at 4 Hz
        reader.read()
        machine.now_s += 0.25
    assert 10 <= machine.asked.count(THROTTLED) <= 11
    other = trees.virtual_machine(tmp_path / "vm")
    reader = StateReader(other.system)
    for _ in range(8):
        reader.read()
        other.now_s += 1.0
    assert other.asked == [THROTTLED], "a machine without the command is asked once"


def test_under_voltage_by_the_kernels_alarm_is_seen_at_once(tmp_path: Path) -> None:
    machine = trees.raspberry_pi_5(tmp_path)
    reader = StateReader(machine.system)
    reader.read()
    machine.put("/sys/class/hwmon/hwmon2/in0_lcrit_alarm", 1)
    machine.now_s += 0.01
    assert reader.read().throttled == {"under-voltage"}


def test_amd_reads_the_die_and_not_the_shifted_control_value(tmp_path: Path) -> None:
    assert StateReader(trees.amd_desktop(tmp_path).system).read().temperature_c == 55.5


def test_phone(tmp_path: Path) -> None:
    machine = trees.phone(tmp_path)
    reader = StateReader(machine.system)
    state = reader.read()
    assert state.temperature_c == 55.0, "neither the radio's amplifier nor zones that show 0 or -40"
    assert state.battery_percent == 64 and state.on_battery is True
    assert state.cpu_mhz == pytest.approx(2419.2) and state.cpu_max_mhz == pytest.approx(2841.6)
    machine.put("/sys/class/thermal/cooling_device0/cur_state", 2)
    assert reader.read().throttled == {"thermal"}
    machine.put(f"{SUPPLY}/usb/online", 1)
    assert reader.read().on_battery is False


def test_nothing_to_read_is_unknown_everywhere(tmp_path: Path) -> None:
    state = StateReader(trees.virtual_machine(tmp_path).system).read()
    assert (state.temperature_c, state.battery_percent, state.on_battery, state.cpu_mhz) == (None,) * 4
    assert state.throttled == frozenset()


@pytest.mark.parametrize("text", ["", "garbage", "-", "nan", "9" * 40, "\0", "0x7", "12 34", "999999", "-60000"])
@pytest.mark.parametrize("build", [trees.intel_laptop, trees.phone, trees.raspberry_pi_5])
def test_garbage_in_every_file_is_unknown(build, text: str, tmp_path: Path) -> None:
    machine = build(tmp_path)
    reader = StateReader(machine.system)
    reader.read()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in ("type", "name")]
    assert len(files) > 5
    for path in files:
        path.write_text(text)
    machine.commands[THROTTLED] = text
    machine.now_s += 30.0
    state = reader.read()
    assert state.temperature_c is None
    assert state.battery_percent is None
    assert state.throttled <= {"thermal"}  # a number may be a count


def test_sensors_that_disappear_and_appear(tmp_path: Path) -> None:
    machine = trees.phone(tmp_path)
    reader = StateReader(machine.system)
    machine.remove("/sys/class/thermal")
    machine.remove(f"{SUPPLY}/battery")
    state = reader.read()
    assert state.temperature_c is None and state.battery_percent is None
    trees.thermal_zones(machine, {"cpu-thermal": 43000})
    machine.now_s += 11.0
    assert reader.read().temperature_c == 43.0


def test_several_batteries_count_by_what_they_hold(tmp_path: Path) -> None:
    machine = trees.RecordedMachine(tmp_path)
    trees.laptop_battery(machine, "BAT0", energy_now=10_000_000, energy_full=20_000_000, capacity=50)
    trees.laptop_battery(machine, "BAT1", energy_now=60_000_000, energy_full=60_000_000, capacity=100, status="Full")
    machine.put_all(f"{SUPPLY}/mouse", {"type": "Battery", "scope": "Device", "capacity": 3, "status": "Discharging"})
    state = StateReader(machine.system).read()
    assert state.battery_percent == pytest.approx(87.5)
    assert state.on_battery is True


def test_a_mouse_alone_is_no_battery(tmp_path: Path) -> None:
    machine = trees.RecordedMachine(tmp_path)
    machine.put_all(f"{SUPPLY}/mouse", {"type": "Battery", "scope": "Device", "capacity": 3, "status": "Discharging"})
    state = StateReader(machine.system).read()
    assert state.battery_percent is None and state.on_battery is None


@pytest.mark.parametrize(("text", "bits"), [
    ("throttled=0x0", 0), ("throttled=0x50005\n", 0x50005), (None, None), ("throttled=5", None), ("0x5", None),
    ("throttled=0xZZ", None), ("throttled=0x123456789", None),
])  # fmt: skip
def test_the_flags_text(text: str | None, bits: int | None) -> None:
    assert parse_throttled(text) == bits
