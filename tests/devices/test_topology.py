"""Cores, caches, instruction sets and affinity on trees of known machines; the running one against lscpu."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.machine_trees import (
    intel_hybrid_laptop,
    orange_pi_5,
    raspberry_pi_5,
    small_virtual_machine,
    status,
    write_tree,
)
from wattwise_devices.cpu_features import read_cpu_info
from wattwise_devices.kernel_text import format_cpu_list, natural, parse_cpu_list
from wattwise_devices.system import System
from wattwise_devices.topology import CpuTopology, read_topology, usable_cpu_numbers

MIB = 1 << 20


def kinds(cpu: CpuTopology) -> str:
    return "".join(core.kind[0] for core in cpu.cores)


def test_orange_pi_small_cores_come_first(tmp_path: Path) -> None:
    cpu = read_topology(orange_pi_5(tmp_path))
    assert kinds(cpu) == "eeeepppp"
    assert cpu.model_name == "4x Cortex-A55 + 4x Cortex-A76"
    assert cpu.architecture == "aarch64"
    assert cpu.features == ("neon", "fp16", "dotprod")
    assert [core.max_mhz for core in cpu.cores] == [1800.0] * 4 + [2352.0] * 4
    assert [core.capacity for core in cpu.cores] == [530] * 4 + [1024] * 4
    assert [core.cpu for core in cpu.physical()] == [4, 5, 6, 7, 0, 1, 2, 3], "fastest first"
    assert cpu.last_cache_bytes() == 3 * MIB
    l2 = [cache.size_bytes for cache in cpu.caches if cache.level == 2]
    assert l2 == [128 << 10] * 4 + [512 << 10] * 4


def test_raspberry_pi_is_one_kind(tmp_path: Path) -> None:
    cpu = read_topology(raspberry_pi_5(tmp_path))
    assert kinds(cpu) == "pppp" and cpu.model_name == "4x Cortex-A76"
    assert cpu.caches == () and cpu.last_cache_bytes() is None and cpu.numa_nodes == ()


def test_intel_hybrid_with_two_threads_on_the_fast_cores(tmp_path: Path) -> None:
    cpu = read_topology(intel_hybrid_laptop(tmp_path))
    assert kinds(cpu) == "pppp" + "e" * 8
    assert [core.smt_sibling_of for core in cpu.cores] == [None, 0, None, 2] + [None] * 8
    assert [core.cpu for core in cpu.physical()] == [0, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert [core.cpu for core in cpu.physical(kind="performance")] == [0, 2]
    assert [core.cpu for core in cpu.physical(usable=(1, 3, 4))] == [1, 3, 4], "the sibling stands for its core"
    assert [core.cpu for core in cpu.physical(usable=(0, 1))] == [0]
    assert "avx_vnni" in cpu.features and "avx512f" not in cpu.features
    assert [c.cpus for c in cpu.caches if c.level == 2] == [(0, 1), (2, 3)], "shared caches are listed once"


def test_virtual_machine(tmp_path: Path) -> None:
    system = small_virtual_machine(tmp_path)
    cpu = read_topology(system)
    assert kinds(cpu) == "pp" and read_cpu_info(system).hypervisor
    assert [(node.node, node.cpus, node.total_bytes) for node in cpu.numa_nodes] == [(0, (0, 1), 16607436 * 1024)]


@pytest.mark.parametrize(
    ("capacities", "expected"),
    [
        ((124, 124, 124, 124, 465, 465, 1024, 1024), "eeeepppp"),  # three tiers: the widest gap is below the middle
        ((1024, 1009, 1024, 1009), "pppp"),  # favoured cores of one design
        ((1024, 256), "pe"),
        ((512, 512), "pp"),
    ],
)
def test_kinds_by_capacity(tmp_path: Path, capacities: tuple[int, ...], expected: str) -> None:
    files = {f"sys/devices/system/cpu/cpu{n}/cpu_capacity": str(value) for n, value in enumerate(capacities)}
    system = write_tree(tmp_path, {"sys/devices/system/cpu/online": f"0-{len(capacities) - 1}", **files})
    assert kinds(read_topology(system)) == expected


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("acpi_cppc/highest_perf", ("196", "196", "132", "132"), "ppee"),  # compact cores
        ("acpi_cppc/highest_perf", ("231", "226", "221", "216"), "pppp"),
        ("cpufreq/cpuinfo_max_freq", ("2200000", "1400000"), "pe"),
        ("cpufreq/cpuinfo_max_freq", ("2200000", ""), "uu"),  # half the evidence is none
        ("cpufreq/cpuinfo_max_freq", ("0", "0"), "uu"),
    ],
)
def test_kinds_by_other_evidence(tmp_path: Path, name: str, values: tuple[str, ...], expected: str) -> None:
    files = {f"sys/devices/system/cpu/cpu{n}/{name}": value for n, value in enumerate(values)}
    system = write_tree(tmp_path, {"sys/devices/system/cpu/online": f"0-{len(values) - 1}", **files})
    assert kinds(read_topology(system)) == expected


def test_kinds_by_design_where_a_phone_hides_the_rest(tmp_path: Path) -> None:
    blocks = [
        f"processor\t: {cpu}\nFeatures\t: asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
        for cpu, part in enumerate(["0xd05", "0xd05", "0xd41", "0xd44"])
    ]
    cpu = read_topology(write_tree(tmp_path, {"proc/cpuinfo": "\n".join(blocks)}))
    assert kinds(cpu) == "eepp" and cpu.model_name == "2x Cortex-A55 + 1x Cortex-A78 + 1x Cortex-X1"


def test_features_are_those_of_all_processors(tmp_path: Path) -> None:
    text = "processor : 0\nflags : avx2 avx512f\n\nprocessor : 1\nflags : avx2\n"
    assert read_cpu_info(write_tree(tmp_path, {"proc/cpuinfo": text})).features == ("avx2",)


def test_affinity_and_cpusets(tmp_path: Path) -> None:
    system = orange_pi_5(tmp_path)
    online = tuple(range(8))
    assert usable_cpu_numbers(system, online) == online
    (tmp_path / "proc/self/status").write_text(status("4-6"))
    assert usable_cpu_numbers(system, online) == (4, 5, 6)
    group = tmp_path / "sys/fs/cgroup/user.slice/user-1000.slice"
    group.mkdir(parents=True)
    (group / "cpuset.cpus.effective").write_text("5-7\n")
    assert usable_cpu_numbers(system, online) == (5, 6), "an ancestor's set where the own group has none"
    (group / "cpuset.cpus.effective").write_text("0-1\n")
    assert usable_cpu_numbers(system, online) == (4, 5, 6), "sets that contradict the affinity tell nothing"


def test_cpusets_of_version_1(tmp_path: Path) -> None:
    system = small_virtual_machine(tmp_path)
    (tmp_path / "sys/fs/cgroup/cpuset").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpuset/cpuset.cpus").write_text("1\n")
    assert usable_cpu_numbers(system, (0, 1)) == (1,)


def test_offline_cpus_do_not_count(tmp_path: Path) -> None:
    system = orange_pi_5(tmp_path)
    (tmp_path / "sys/devices/system/cpu/online").write_text("0-3,6\n")
    cpu = read_topology(system)
    assert kinds(cpu) == "eeeep"
    assert usable_cpu_numbers(system, tuple(core.cpu for core in cpu.cores)) == (0, 1, 2, 3, 6)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8,10-11", (0, 1, 2, 3, 8, 10, 11)), ("5", (5,)), ("0", (0,)), ("0,0-1", (0, 1)), ("7-7", (7,))],
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus
    assert parse_cpu_list(format_cpu_list(cpus)) == cpus


@pytest.mark.parametrize("text", [None, "", "-", "3-1", "a-b", "0-99999999999", "1,,2", "٣", "9" * 5000, "0x3", "1-"])
def test_what_is_no_cpu_list_is_empty(text: str | None) -> None:
    assert parse_cpu_list(text) == ()


@pytest.mark.parametrize("text", [None, "", "-1", "1.5", "max", "٣", "9" * 5000, "0x3"])
def test_what_is_no_number_is_none(text: str | None) -> None:
    assert natural(text) is None


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="needs lscpu")
def test_this_machine_agrees_with_lscpu() -> None:
    done = subprocess.run(["lscpu", "-J", "-e=CPU,CORE,SOCKET"], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)["cpus"]
    cpu = read_topology(System())
    assert [core.cpu for core in cpu.cores] == [int(row["cpu"]) for row in rows]
    assert len(cpu.physical()) == len({(row["socket"], row["core"]) for row in rows})
    caches = subprocess.run(["lscpu", "-B", "-J", "-C=NAME,ALL-SIZE"], capture_output=True, text=True, check=True)
    letters = {"data": "d", "instruction": "i", "unified": ""}
    ours: dict[str, int] = {}
    for cache in cpu.caches:
        name = f"L{cache.level}{letters[cache.kind]}"
        ours[name] = ours.get(name, 0) + cache.size_bytes
    assert ours == {row["name"]: int(row["all-size"]) for row in json.loads(caches.stdout).get("caches", [])}
    words = {key.strip(): value for key, value in _lscpu_fields().items()}
    assert cpu.model_name == words.get("Model name")
    assert ("avx2" in cpu.features) == ("avx2" in words.get("Flags", "").split())


def _lscpu_fields() -> dict[str, str]:
    done = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    return {key: value.strip() for key, _, value in (line.partition(":") for line in done.stdout.splitlines())}


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_this_machine_under_taskset() -> None:
    first = min(os.sched_getaffinity(0))
    code = "from wattwise_devices.machine import probe_machine as p; m = p(); print(m.usable, m.usable_cpus <= 1)"
    command = ["taskset", "-c", str(first), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"({first},) True"
