"""Which meters a machine offers, in which order, and what is said about those it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support import recorded_trees as trees
from support.meter_rows import PROFILE, fake_nvml, nvidia_desktop
from wattwise_devices.errors import CorruptArtifact
from wattwise_devices.meters import Meter, Reading, best_meter, diagnose, open_meters
from wattwise_devices.meters.nvidia import open_nvidia
from wattwise_devices.meters.powermetrics import parse_watts
from wattwise_devices.meters.registry import SOURCES, covers_whole
from wattwise_devices.meters.replay import write_readings
from wattwise_devices.meters.rpi_pmic import parse_rails

EXPECTED = {
    trees.intel_laptop: ["rapl:psys", "rapl:package-0", "battery", "rapl:package-0/core", "rapl:package-0/uncore"],
    trees.two_socket_server: [
        "rapl:packages", "rapl:package-0", "rapl:package-1", "hwmon:power_meter", "rapl:package-0/dram",
        "rapl:package-1/dram",
    ],
    trees.amd_desktop: ["rapl:package-0", "rapl:package-0/core", "amdgpu"],
    trees.raspberry_pi_5: ["pmic"],
    trees.pi_4_with_ina219: ["hwmon:ina219"],
    trees.jetson_orin: ["jetson:VDD_IN", "jetson:VDD_CPU_GPU_CV", "jetson:VDD_SOC"],
    trees.jetson_agx_orin: [
        "jetson:inputs", "jetson:VDD_GPU_SOC", "jetson:VDD_CPU_CV", "jetson:VIN_SYS_5V0", "jetson:VDDQ_VDD2_1V8AO",
    ],
    trees.jetson_nano: ["jetson:POM_5V_IN", "jetson:POM_5V_CPU", "jetson:POM_5V_GPU"],
    trees.phone: ["battery"],
    trees.virtual_machine: [],
    trees.macbook: ["powermetrics"],
}  # fmt: skip


@pytest.mark.parametrize("build", EXPECTED, ids=lambda build: build.__name__)
def test_best_first(build, tmp_path: Path) -> None:
    machine = build(tmp_path)
    meters = open_meters(machine.system)
    assert [meter.name for meter in meters] == EXPECTED[build]
    assert all(isinstance(meter, Meter) for meter in meters)
    assert len({meter.name for meter in meters}) == len(meters)
    for meter in meters:
        assert meter.rate_hz > 0 and not meter.estimated
        assert (meter.resolution_j is None) == (meter.read().energy_j is None)  # type: ignore[union-attr]


@pytest.mark.parametrize("build", EXPECTED, ids=lambda build: build.__name__)
def test_every_source_says_what_it_has_or_why_not(build, tmp_path: Path) -> None:
    found = diagnose(build(tmp_path).system)
    assert [item.source for item in found] == list(SOURCES)
    assert all(item.meters or item.reasons for item in found)
    assert sorted(name for item in found for name in item.meters) == sorted(EXPECTED[build])


def test_an_estimate_comes_after_everything_that_measures_the_whole(tmp_path: Path) -> None:
    names = [meter.name for meter in open_meters(trees.intel_laptop(tmp_path).system, PROFILE)]
    assert names == [*EXPECTED[trees.intel_laptop][:3], "model:test-board", *EXPECTED[trees.intel_laptop][3:]]


def test_the_best_meter_is_one_that_answers(tmp_path: Path) -> None:
    machine = trees.intel_laptop(tmp_path)
    for zone in tmp_path.glob("sys/class/powercap/intel-rapl*"):
        machine.deny(f"{zone.relative_to(tmp_path)}/energy_uj")
    meters = open_meters(machine.system, PROFILE)
    assert best_meter(meters) is meters[0] and meters[0].name == "battery"
    machine.put("/sys/class/power_supply/AC/online", 1)
    best = best_meter(meters)
    assert best is not None and best.name == "model:test-board"
    assert best_meter([]) is None


def test_a_steady_value_that_nobody_watched_is_not_stale(tmp_path: Path) -> None:
    machine = trees.raspberry_pi_5(tmp_path)
    meter = open_meters(machine.system)[0]
    for seconds in (0.0, 60.0, 4.0):
        machine.now_s += seconds
        reading = meter.read()
        assert reading is not None and not reading.stale
    machine.now_s += 2.0
    reading = meter.read()
    assert reading is not None and reading.stale


def test_a_card_alone_does_not_stand_for_the_machine(tmp_path: Path) -> None:
    machine = nvidia_desktop(tmp_path)
    machine.put("/proc/stat", trees.proc_stat([1.0]))
    card = open_nvidia(machine.system, None, fake_nvml(counter=True)(machine)).meters[0]
    assert not covers_whole(card)
    assert covers_whole(open_meters(machine.system, PROFILE)[0])


def test_built_in_graphics_of_amd_tell_the_whole_package(tmp_path: Path) -> None:
    """Only there is a north-bridge voltage shown; on a card the same file is the card's power."""
    machine = trees.RecordedMachine(tmp_path)
    trees.hwmon(machine, 1, "amdgpu", {
        "power1_input": 9_017_000, "power1_label": "PPT", "in0_label": "vddgfx", "in1_label": "vddnb",
    })  # fmt: skip
    trees.hwmon(machine, 2, "amdgpu", {"power1_average": 31_000_000, "in0_label": "vddgfx"})
    whole, card = open_meters(machine.system)
    assert (whole.scope, card.scope) == ("package", "gpu")
    assert (whole.name, card.name) == ("amdgpu@1-0040", "amdgpu@2-0040"), "told apart by what lasts"
    readings = [meter.read() for meter in (whole, card)]
    assert [reading and reading.power_w for reading in readings] == [9.017, 31.0]


def test_nvidia_without_its_package_or_with_a_broken_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = nvidia_desktop(tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    opened = open_nvidia(machine.system)
    assert opened.meters == () and "nvidia-ml-py" in opened.reasons[0]
    module = fake_nvml(counter=True)(machine)

    def fail() -> None:
        raise module.NVMLError("Driver/library version mismatch")

    module.nvmlInit = fail
    opened = open_nvidia(machine.system, None, module)
    assert opened.meters == () and "version mismatch" in opened.reasons[0]


def test_psys_that_counts_less_than_the_package_is_not_believed(tmp_path: Path) -> None:
    machine = trees.intel_laptop(tmp_path)
    psys, package = open_meters(machine.system)[:2]
    assert (psys.name, package.name) == ("rapl:psys", "rapl:package-0")
    for second in range(1, 6):
        machine.now_s += 1
        machine.put("/sys/class/powercap/intel-rapl:0/energy_uj", 81_523_443_202 + second * 15_000_000)
        machine.put("/sys/class/powercap/intel-rapl:1/energy_uj", 120_000_000_000 + second * 2_000_000)
        reading, inner = psys.read(), package.read()
    assert reading is not None and reading.stale and reading.power_w is None
    assert inner is not None and not inner.stale and inner.power_w == pytest.approx(15.0)


def test_registers_in_memory_are_used_where_the_others_are_missing(tmp_path: Path) -> None:
    machine = trees.RecordedMachine(tmp_path)
    machine.put_all("/sys/class/powercap/intel-rapl-mmio:0", {
        "name": "package-0", "energy_uj": 5, "max_energy_range_uj": trees.RAPL_PACKAGE_RANGE_UJ,
    })  # fmt: skip
    assert [meter.name for meter in open_meters(machine.system)] == ["rapl:package-0"]


def test_a_silence_longer_than_the_counter_may_last_is_doubted(tmp_path: Path) -> None:
    machine = trees.amd_desktop(tmp_path)
    meter = open_meters(machine.system)[0]
    machine.now_s += 100.0
    machine.put("/sys/class/powercap/intel-rapl:0/energy_uj", 1_004_000_000)
    reading = meter.read()
    assert reading is not None and not reading.stale and reading.energy_j == pytest.approx(1000.0)
    machine.now_s += 3600.0  # at 100 W the counter would have turned over five times
    machine.put("/sys/class/powercap/intel-rapl:0/energy_uj", 2_004_000_000)
    reading = meter.read()
    assert reading is not None and reading.stale


def test_real_permission(tmp_path: Path) -> None:
    """As another user than root, who may read everything: a child process without privileges."""
    machine = trees.intel_laptop(tmp_path)
    zones = "sys/class/powercap/intel-rapl*/energy_uj"
    for path in tmp_path.glob(zones):
        path.chmod(0)
    script = """
        import os, sys
        from pathlib import Path
        from wattwise_devices.meters import diagnose, open_meters
        from wattwise_devices.system import System
        system = System(root=Path(sys.argv[1]), run=lambda arguments: None)
        if os.getuid() == 0:
            os.setgid(65534), os.setuid(65534)
        print([m.name for m in open_meters(system)])
        print([r for d in diagnose(system) for r in d.reasons if d.source == "rapl"])
    """
    if os.getuid() == 0:
        for folder in [tmp_path, *tmp_path.parents]:
            if folder.owner() == "root" and folder != Path("/") and not folder.stat().st_mode & 1:
                folder.chmod(folder.stat().st_mode | 0o5)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    names, reasons = done.stdout.splitlines()
    assert names == "['battery']"
    assert reasons.count("needs root") == 4 and "chmod a+r" in reasons
    assert machine.asked == []


def test_rails_without_a_partner_are_left_out() -> None:
    rails = parse_rails(trees.pmic_text(4.0))
    assert set(rails) == set(trees.PI5_RAILS) and sum(rails.values()) == pytest.approx(4.0, abs=1e-5)
    assert parse_rails("EXT5V_V volt(24)=5.15V\nBATT_V volt(25)=0.0V") == {}
    assert parse_rails("VDD_CORE_A current(7)=1.0V\nVDD_CORE_V volt(15)=0.9V") == {}, "units must fit"


def test_a_rail_that_vanishes_makes_the_sum_unknown(tmp_path: Path) -> None:
    machine = trees.raspberry_pi_5(tmp_path)
    meter = open_meters(machine.system)[0]
    lines = trees.pmic_text(4.0).splitlines()
    machine.commands["vcgencmd", "pmic_read_adc"] = "\n".join(x for x in lines if "VDD_CORE_A" not in x)
    assert meter.read() is None


def test_powermetrics_of_both_kinds_of_macs() -> None:
    assert parse_watts(trees.powermetrics_text(6.5)) == 6.5
    assert parse_watts(trees.powermetrics_text_intel(11.25)) == 11.25
    assert parse_watts("powermetrics must be invoked as the superuser") is None


def test_powermetrics_through_sudo_or_not_at_all(tmp_path: Path) -> None:
    machine = trees.macbook(tmp_path)
    tool = ("powermetrics", "--samplers", "cpu_power", "-n", "1", "-i", "200")
    text = machine.commands.pop(tool)
    assert open_meters(machine.system) == []
    assert "root" in next(item for item in diagnose(machine.system) if item.source == "powermetrics").reasons[0]
    machine.commands["sudo", "-n", *tool] = text
    assert [meter.name for meter in open_meters(machine.system)] == ["powermetrics"]


def test_battery_on_external_power_says_nothing_until_the_plug_is_pulled(tmp_path: Path) -> None:
    machine = trees.intel_laptop(tmp_path)
    machine.put("/sys/class/power_supply/AC/online", 1)
    machine.put("/sys/class/power_supply/BAT0/status", "Charging")
    meter = next(meter for meter in open_meters(machine.system) if meter.name == "battery")
    assert meter.read() is None, "8.12 W flow into the battery, not into the machine"
    reasons = next(item for item in diagnose(machine.system) if item.source == "battery").reasons
    assert "external power" in reasons[0]
    machine.put("/sys/class/power_supply/AC/online", 0)
    machine.put("/sys/class/power_supply/BAT0/status", "Discharging")
    reading = meter.read()
    assert reading is not None and reading.power_w == pytest.approx(8.12)


def test_two_batteries_that_both_discharge_are_added(tmp_path: Path) -> None:
    machine = trees.RecordedMachine(tmp_path)
    trees.laptop_battery(machine, "BAT0", power_now=3_000_000)
    trees.laptop_battery(machine, "BAT1", power_now=4_500_000)
    meter = open_meters(machine.system)[0]
    reading = meter.read()
    assert reading is not None and reading.power_w == pytest.approx(7.5)
    machine.remove("/sys/class/power_supply/BAT1/power_now")
    machine.remove("/sys/class/power_supply/BAT1/voltage_now")
    assert meter.read() is None, "one of two is not the total"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_of_a_current_means_nothing(sign: int, tmp_path: Path) -> None:
    machine = trees.phone(tmp_path)
    machine.put("/sys/class/power_supply/battery/current_now", sign * 520_000)
    reading = open_meters(machine.system)[0].read()
    assert reading is not None and reading.power_w == pytest.approx(0.52 * 3.85)


def test_model_counts_the_busiest_thread_of_a_core(tmp_path: Path) -> None:
    machine = trees.virtual_machine(tmp_path)
    for cpu, siblings in ((0, "0-1"), (1, "0-1")):
        machine.put_all(f"/sys/devices/system/cpu/cpu{cpu}/topology", {
            "thread_siblings_list": siblings, "core_cpus_list": siblings, "core_id": 0, "physical_package_id": 0,
        })  # fmt: skip
    machine.put("/sys/devices/system/cpu/online", "0-1")
    meter = open_meters(machine.system, PROFILE)[0]
    start = meter.read()
    machine.now_s += 10.0
    machine.put("/proc/stat", trees.proc_stat([18.0, 24.0]))  # 8 s and 4 s busy
    reading = meter.read()
    assert start is not None and reading is not None and reading.estimated
    assert (reading.energy_j or 0) - (start.energy_j or 0) == pytest.approx(3.0 * 10 + 2.0 * 8)


def test_model_needs_a_profile_with_numbers(tmp_path: Path) -> None:
    machine = trees.virtual_machine(tmp_path)
    assert open_meters(machine.system) == []
    reasons = next(item for item in diagnose(machine.system) if item.source == "model").reasons
    assert "profile" in reasons[0]


def recording(path: Path, readings: list[Reading], spoil: str = "") -> Path:
    write_readings(path, readings)
    path.write_text(path.read_text() + spoil)
    return path


def test_replay_plays_what_was_recorded(tmp_path: Path) -> None:
    readings = [
        Reading(source="pmic", scope="board", time_s=500 + t, power_w=5.0 + t, energy_j=7.0 + 5 * t) for t in range(10)
    ]
    garbage = 'garbage\n{"source": 3}\n[1]\n{"source": "pmic", "scope": "board", "time_s": "x", "power_w": 1}\n'
    machine = trees.virtual_machine(tmp_path)
    meter = open_meters(machine.system, replay=recording(tmp_path / "r.jsonl", readings, garbage))[0]
    assert (meter.name, meter.scope, meter.rate_hz, meter.estimated) == ("replay:pmic", "board", 1.0, True)
    for t in (0.0, 0.5, 3.0, 9.0, 11.9):
        machine.now_s = 1000 + t
        reading = meter.read()
        step = min(9, int(t))
        assert reading is not None and reading.estimated
        assert (reading.power_w, reading.energy_j, reading.time_s) == (5.0 + step, 5.0 * step, 1000.0 + step)
    machine.now_s = 1013.0
    assert meter.read() is None, "the recording is over"


def test_replay_of_gaps_and_other_sources(tmp_path: Path) -> None:
    readings = [
        Reading(source=name, scope="board", time_s=t, power_w=4.0)
        for t in (0.0, 1.0, 2.0, 20.0)
        for name in ("battery", "other")
    ]
    machine = trees.virtual_machine(tmp_path)
    meter = open_meters(machine.system, replay=recording(tmp_path / "r.jsonl", readings))[0]
    machine.now_s = 1010.0
    assert meter.read() is None
    machine.now_s = 1020.0
    assert meter.read() is not None and meter.name == "replay:battery"


def test_a_recording_that_cannot_be_played_is_refused(tmp_path: Path) -> None:
    machine = trees.virtual_machine(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({"source": "x"}))
    for path in (empty, tmp_path / "absent.jsonl"):
        with pytest.raises(CorruptArtifact, match=path.name):
            open_meters(machine.system, replay=path)
