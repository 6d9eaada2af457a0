"""`wattwise devices`: words of at most 80 columns, one JSON object, measured once and remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.machine_trees import intel_hybrid_laptop, orange_pi_5, raspberry_pi_5, small_virtual_machine, write_tree
from wattwise.cli import devices_command, main
from wattwise.cli.devices_meters import look_at_meters
from wattwise.cli.devices_text import describe
from wattwise_devices.machine import Measured, probe_machine
from wattwise_devices.read_rate import ReadRate
from wattwise_runtimes.accelerators import Accelerator, Accelerators

GIB = 1 << 30
ENGINES = [{"name": "onnx", "version": "onnxruntime 1.0", "problem": None}]


def words(tree: Any, root: Path, accelerators: Accelerators | None = None) -> str:
    machine = probe_machine(tree(root) if callable(tree) else tree)
    storage = machine.storage("/home/me/model.gguf")
    rates = {storage.key: ReadRate(bytes_per_s=9.1e7, method="dropped-cache", read_bytes=1)}
    measured = Measured(
        fingerprint="x", measured_at_s=1.7e9, read_bytes_per_s_by_threads={1: 4.9e9, 2: 9.81e9}, storage=rates
    )
    found = accelerators or Accelerators(devices=(), problems=())
    storage = machine.storage("/home/me/model.gguf", measured)
    lines = describe(machine, storage, measured, found, ENGINES, look_at_meters(machine))
    assert all(len(line) <= 80 for line in lines), [line for line in lines if len(line) > 80]
    return "\n".join(lines)


def test_words_of_a_big_little_board(tmp_path: Path) -> None:
    text = words(orange_pi_5, tmp_path)
    for expected in (
        "Xunlong Orange Pi 5", "profile orange-pi-5", "4 performance cores + 4 efficiency cores",
        "performance: CPUs 4-7; up to 2352 MHz", "neon fp16 dotprod", "compressed memory (zram)",
        "sd-card mmcblk1 ext4", "reads 91 MB/s (after dropping its cache)", "1: 4.9, 2: 9.8", "all CPUs, no quota",
        "none besides the processor",
    ):  # fmt: skip
        assert expected in " ".join(text.split())


def test_words_of_a_laptop(tmp_path: Path) -> None:
    text = words(intel_hybrid_laptop, tmp_path)
    assert "2 performance cores + 8 efficiency cores, 12 threads (SMT)" in text
    assert "L2 1.25 MiB x 2" in text and "L3 12.0 MiB" in text


def test_words_of_a_limited_guest(tmp_path: Path) -> None:
    system = small_virtual_machine(tmp_path)
    write_tree(
        tmp_path,
        {
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB // 2}\n",
        },
    )
    (tmp_path / "proc/self/status").write_text("Cpus_allowed_list:\t1\n")
    accelerators = Accelerators(
        devices=(
            Accelerator(library="ggml", name="Vulkan0", description="Some GPU", kind="gpu", total_bytes=2 * GIB,
                        free_bytes=GIB),
            Accelerator(library="ggml", name="CPU", description="the processor", kind="cpu", total_bytes=GIB,
                        free_bytes=GIB),
            Accelerator(library="onnxruntime", name="QNNExecutionProvider", description="simulator", kind="cpu",
                        total_bytes=None, free_bytes=None),
        ),
        problems=("onnxruntime did not list its devices within 20 s; a driver may hang",),
    )  # fmt: skip
    text = words(system, tmp_path, accelerators)
    for expected in (
        "unnamed machine; virtual", "CPUs 1 of 0-1 by affinity", "may use 1.5 CPUs' worth of time",
        "may use 1.00 GiB (used: 512 MiB)", "Vulkan0 (gpu, by ggml); Some GPU; 1.00 GiB of 2.00 GiB free", "may hang",
        "QNNExecutionProvider (cpu, by onnxruntime); simulator",
    ):  # fmt: skip
        assert expected in " ".join(text.split())
    assert "the processor" not in text


def test_words_where_nothing_is_known(tmp_path: Path) -> None:
    text = words(write_tree(tmp_path, {"proc/nothing": ""}), tmp_path)
    assert "unknown" in text and "None" not in text


def test_meters_and_state(tmp_path: Path) -> None:
    """A board without sensors has its profile's estimate, labelled; with a counter, that one is shown and no excuse."""
    system = raspberry_pi_5(tmp_path)
    stat = "".join(f"cpu{n} 100 0 50 9000 10 0 5 0 0 0\n" for n in range(4))
    write_tree(tmp_path, {"proc/stat": f"cpu  400 0 200 36000 40 0 20 0 0 0\n{stat}"})
    text = " ".join(words(system, tmp_path).split())
    assert "model:raspberry-pi-5: board, ESTIMATED" in text and "nothing here measures power, because:" in text
    assert "rapl: no RAPL" in text and "no temperature, battery or clock can be read" in text
    zone, supply = "sys/class/powercap/intel-rapl:0", "sys/class/power_supply/BAT0"
    files = {
        f"{zone}/name": "package-0\n", f"{zone}/energy_uj": "1000000\n",
        f"{zone}/max_energy_range_uj": "262143328850\n",
        f"{supply}/type": "Battery\n", f"{supply}/status": "Discharging\n", f"{supply}/present": "1\n",
        f"{supply}/capacity": "81\n", f"{supply}/power_now": "7500000\n", f"{supply}/scope": "System\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n", "sys/class/thermal/thermal_zone0/temp": "61200\n",
    }  # fmt: skip
    write_tree(tmp_path, files)
    text = " ".join(words(system, tmp_path).split())
    assert "rapl:package-0: package, counts joules" in text and "7.50 W now" in text and "because:" not in text
    assert "61 °C; battery 81 %; on battery" in text
    found = look_at_meters(probe_machine(system)).to_json()
    json.dumps(found)  # plain data: nothing that needs a default
    assert {meter["estimated"] for meter in found["meters"]} == {True, False}
    assert found["state"]["temperature_c"] == pytest.approx(61.2)


def test_words_of_an_unswapped_board(tmp_path: Path) -> None:
    assert "4 cores, all of one kind" in words(raspberry_pi_5, tmp_path)


def run_command(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["devices", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_of_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = run_command(capsys, "--path", str(tmp_path))
    assert set(first) >= {
        "board", "platform", "hypervisor", "cpu", "usable", "quota_cpus", "usable_cpus", "memory", "profile", "storage",
        "measured", "engines", "accelerators", "meters", "meter_sources", "state",
    }  # fmt: skip
    assert len(first["cpu"]["cores"]) >= len(first["usable"]) >= 1
    assert first["measured"]["read_bytes_per_s_by_threads"]["1"] > 1e8
    assert first["storage"]["read_bytes_per_s"] > 1e5
    assert {engine["name"] for engine in first["engines"]} >= {"onnx", "llamacpp"}
    again = run_command(capsys, "--path", str(tmp_path))
    assert again["measured"] == first["measured"], "remembered"
    afresh = run_command(capsys, "--path", str(tmp_path), "--probe")
    assert afresh["measured"]["measured_at_s"] > first["measured"]["measured_at_s"]


def test_an_engine_whose_library_crashes_is_reported_and_not_loaded() -> None:
    crash = "ggml ended while it listed its devices (signal 11): no message"
    asked = Accelerators(devices=(), problems=(crash,), versions={"onnxruntime": "onnxruntime 9"})
    engines = {engine["name"]: engine for engine in devices_command._engines(asked)}
    assert engines["llamacpp"] == {"name": "llamacpp", "version": None, "problem": crash}
    assert engines["onnx"] == {"name": "onnx", "version": "onnxruntime 9", "problem": None}
    assert engines["reference"]["version"]


def test_a_path_that_is_not_there_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["devices", "--path", str(tmp_path / "absent")]) == 1
    assert "absent" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs CPU affinity")
def test_words_under_one_cpu() -> None:
    first = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{first}}}); from wattwise.cli import main; main(['devices', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["usable"] == [first] and list(found["measured"]["read_bytes_per_s_by_threads"]) == ["1"]
