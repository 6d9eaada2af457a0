"""The probe as a whole: known machines, limits, hostile trees, the running machine against free and its groups."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from support.machine_trees import (
    GIB,
    intel_hybrid_laptop,
    orange_pi_5,
    raspberry_pi_5,
    small_virtual_machine,
    write_tree,
)
from wattwise_devices import darwin
from wattwise_devices.fingerprint import fingerprint
from wattwise_devices.machine import probe_machine
from wattwise_devices.system import System

TREES = [orange_pi_5, raspberry_pi_5, intel_hybrid_laptop, small_virtual_machine]


def test_orange_pi(tmp_path: Path) -> None:
    machine = probe_machine(orange_pi_5(tmp_path))
    assert machine.board == "Xunlong Orange Pi 5" and machine.hypervisor is None
    assert machine.profile is not None and machine.profile.name == "orange-pi-5"
    assert machine.usable_cpus == 8 and machine.quota_cpus is None
    memory = machine.memory
    assert (memory.total_bytes, memory.available_bytes) == (8124880 * 1024, 7233212 * 1024)
    assert (memory.swap_total_bytes, memory.swap_free_bytes) == (4062436 * 1024, 4000000 * 1024)
    assert (memory.zram_bytes, memory.zram_used_bytes) == (4159934464, 21458944)
    assert memory.allowed_bytes == 7233212 * 1024, "swap is no room for a model"


def test_raspberry_pi(tmp_path: Path) -> None:
    system = raspberry_pi_5(tmp_path)
    machine = probe_machine(system)
    assert machine.profile is not None and machine.profile.name == "raspberry-pi-5"
    assert machine.memory.zram_bytes == 0 and machine.memory.swap_total_bytes == 204784 * 1024
    (tmp_path / "proc/device-tree/model").unlink()
    assert probe_machine(system).board == "Raspberry Pi 5 Model B Rev 1.0", "cpuinfo knows it too"


def test_laptop(tmp_path: Path) -> None:
    machine = probe_machine(intel_hybrid_laptop(tmp_path))
    assert machine.board == "LENOVO 21C6S0XX00"
    assert machine.profile is not None and machine.profile.name == "laptop-x86-u"
    assert machine.profile.watts_of("performance") != machine.profile.watts_of("efficiency")


def test_virtual_machine_with_limits_of_version_1(tmp_path: Path) -> None:
    system = small_virtual_machine(tmp_path)
    write_tree(
        tmp_path,
        {
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{600 << 20}\n",
            "sys/fs/cgroup/memory/box/memory.stat": (
                f"cache {500 << 20}\nactive_file 0\ntotal_active_file {100 << 20}\ntotal_inactive_file {300 << 20}\n"
            ),
        },
    )
    machine = probe_machine(system)
    assert machine.board is None and machine.profile is None and machine.hypervisor == "unknown"
    assert (machine.quota_cpus, machine.usable_cpus) == (1.5, 1.5)
    assert machine.memory.limit_bytes == GIB and machine.memory.limit_cache_bytes == 400 << 20
    assert machine.memory.allowed_bytes == GIB - (200 << 20), "cached files give way before anybody is killed"


@pytest.mark.parametrize(
    ("cpu_max", "quota"),
    [("50000 100000", 0.5), ("max 100000", None), ("250000 100000", 2.5), ("0 100000", None), ("x", None), ("", None)],
)
def test_quota_of_version_2(tmp_path: Path, cpu_max: str, quota: float | None) -> None:
    system = orange_pi_5(tmp_path)
    write_tree(tmp_path, {"sys/fs/cgroup/user.slice/cpu.max": f"{cpu_max}\n"})
    machine = probe_machine(system)
    assert machine.quota_cpus == quota
    assert machine.usable_cpus == (quota or 8)


def test_both_versions_at_once(tmp_path: Path) -> None:
    """systemd's hybrid layout: version 2 is mounted below version 1 and may hold the limits."""
    system = small_virtual_machine(tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,cpuacct:/\n0::/system.slice/box.service\n")
    folder = "sys/fs/cgroup/unified/system.slice/box.service"
    write_tree(tmp_path, {f"{folder}/cpu.max": "100000 100000\n", f"{folder}/memory.max": f"{2 * GIB}\n"})
    machine = probe_machine(system)
    assert (machine.quota_cpus, machine.memory.limit_bytes) == (1.0, 2 * GIB)


@pytest.mark.parametrize("tree", TREES)
def test_json_is_plain_and_complete(tmp_path: Path, tree: object) -> None:
    machine = probe_machine(tree(tmp_path))  # type: ignore[operator]
    value = machine.to_json()
    assert json.loads(json.dumps(value)) == json.loads(json.dumps(value, default=str)), "no default is needed"
    assert set(value) == {
        "board", "platform", "hypervisor", "cpu", "usable", "quota_cpus", "usable_cpus", "memory", "profile",
        "profile_error",
    }  # fmt: skip
    assert len(value["cpu"]["cores"]) == len(machine.cpu.cores) > 0


def test_an_empty_root_is_all_unknown(tmp_path: Path) -> None:
    machine = probe_machine(System(root=tmp_path, run=lambda arguments: None))
    assert machine.cpu.cores == () and machine.usable == () and machine.usable_cpus == 1
    assert machine.memory.total_bytes is None and machine.memory.swap_total_bytes is None
    assert machine.board is None and machine.quota_cpus is None
    assert machine.storage("/x").kind == "unknown"
    assert len(fingerprint(machine)) == 24


@pytest.mark.parametrize("seed", range(40))
def test_garbage_never_raises(tmp_path: Path, seed: int) -> None:
    """Every file of a sound tree is left, cut, emptied, filled with noise, made a folder or removed."""
    chance = random.Random(seed)
    system = TREES[seed % len(TREES)](tmp_path)
    noise = [
        "",
        "\0\xff\n",
        "9" * 400,
        "-1",
        "nan",
        "1e999",
        "0-9999999999",
        "max",
        ": : :\n\n::",
        "0\n0\n0",
        "٣",
        " - ",
    ]
    for path in sorted(tmp_path.rglob("*")):
        if path.is_symlink() or not path.is_file() or chance.random() < 0.5:
            continue
        kind = chance.randrange(5)
        text = path.read_text()
        path.unlink()
        if kind == 0:
            path.write_text(text[: chance.randrange(len(text) + 1)])
        elif kind == 1:
            path.write_bytes(chance.randbytes(chance.randrange(200)))
        elif kind == 2:
            path.write_text(chance.choice(noise))
        elif kind == 3:
            path.mkdir()
    machine = probe_machine(system)
    machine.storage("/home/me/model.gguf")
    json.dumps(machine.to_json())
    fingerprint(machine)
    assert machine.usable_cpus > 0
    assert all(core.kind in ("performance", "efficiency", "unknown") for core in machine.cpu.cores)


def test_unreadable_files_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = orange_pi_5(tmp_path)
    real_open, real_read_text = Path.open, Path.read_text

    def refused(path: Path) -> None:
        if tmp_path in path.parents and path.name in ("cpuinfo", "meminfo", "cpu_capacity", "mountinfo", "cgroup"):
            raise PermissionError(13, "Permission denied")

    def guarded_open(self: Path, *args: object, **kwargs: object) -> object:
        refused(self)
        return real_open(self, *args, **kwargs)  # type: ignore[call-overload]

    def guarded_read(self: Path, *args: object, **kwargs: object) -> str:
        refused(self)
        return real_read_text(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", guarded_open)
    monkeypatch.setattr(Path, "read_text", guarded_read)
    machine = probe_machine(system)
    assert machine.memory.total_bytes is None and machine.memory.available_bytes is None
    assert [core.capacity for core in machine.cpu.cores] == [None] * 8
    assert machine.cpu.model_name is None and machine.storage("/").kind == "unknown"
    assert [core.kind[0] for core in machine.cpu.cores] == list("eeeepppp"), "the clock still tells them apart"


def test_a_broken_profile_is_reported_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wattwise_devices import machine as module
    from wattwise_devices.profile import find_profile

    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "bad.toml").write_text("title = 3")
    monkeypatch.setattr(module, "find_profile", lambda *names: find_profile(*names, folder=folder))
    machine = probe_machine(raspberry_pi_5(tmp_path))
    assert machine.profile is None and "bad.toml" in (machine.profile_error or "")


def test_android_is_named_by_its_properties(tmp_path: Path) -> None:
    write_tree(tmp_path, {"system/build.prop": "x\n", "proc/cpuinfo": "processor : 0\n"})
    answers = {"ro.product.manufacturer": "Google\n", "ro.product.model": "Pixel 8\n"}
    machine = probe_machine(System(root=tmp_path, run=lambda arguments: answers.get(arguments[-1])))
    assert (machine.platform, machine.board) == ("android", "Google Pixel 8")
    assert machine.profile is not None and machine.profile.name == "phone-termux"


def test_macos_by_sysctl(tmp_path: Path) -> None:
    facts = (
        "hw.logicalcpu: 8\nhw.nperflevels: 2\nhw.perflevel0.logicalcpu: 4\nhw.perflevel0.cpusperl2: 4\n"
        "hw.perflevel0.l2cachesize: 12582912\nhw.perflevel1.logicalcpu: 4\nhw.perflevel1.cpusperl2: 4\n"
        "hw.perflevel1.l2cachesize: 4194304\nhw.memsize: 8589934592\nhw.model: MacBookAir10,1\n"
        "machdep.cpu.brand_string: Apple M1\nhw.optional.neon: 1\nhw.optional.arm.FEAT_DotProd: 1\n"
        "hw.optional.arm.FEAT_I8MM: 0\nvm.swapusage: total = 1024.00M  used = 24.50M  free = 999.50M  (encrypted)\n"
    )
    pages = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:      10000.\nPages inactive: 20000.\n"
    )
    answers = {"sysctl": facts, "vm_stat": pages}
    system = System(root=tmp_path, run=lambda arguments: answers.get(arguments[0]))
    cpu, memory = darwin.read_topology(system), darwin.read_memory_info(system)
    assert cpu is not None and memory is not None
    assert "".join(core.kind[0] for core in cpu.cores) == "ppppeeee" and cpu.features == ("neon", "dotprod")
    assert [(c.size_bytes, c.cpus) for c in cpu.caches] == [(12582912, (0, 1, 2, 3)), (4194304, (4, 5, 6, 7))]
    assert (memory.total_bytes, memory.available_bytes) == (8 * GIB, 30000 * 16384)
    assert memory.swap_free_bytes == round(999.5 * (1 << 20)) and darwin.read_board(system) == "MacBookAir10,1"
    silent = System(root=tmp_path, run=lambda arguments: None)
    assert darwin.read_topology(silent) is None and darwin.read_memory_info(silent) is None


def test_fingerprints_follow_limits_not_load(tmp_path: Path) -> None:
    system = orange_pi_5(tmp_path)
    first = fingerprint(probe_machine(system))
    meminfo = tmp_path / "proc/meminfo"
    meminfo.write_text(meminfo.read_text().replace("7233212", "5000000"))
    assert fingerprint(probe_machine(system)) == first, "free memory changes every second"
    write_tree(tmp_path, {"sys/fs/cgroup/user.slice/cpu.max": "50000 100000\n"})
    limited = fingerprint(probe_machine(system))
    assert limited != first
    (tmp_path / "sys/devices/system/cpu/online").write_text("0-5\n")
    assert fingerprint(probe_machine(system)) not in (first, limited)


@pytest.mark.skipif(shutil.which("free") is None, reason="needs free")
def test_this_machine_agrees_with_free() -> None:
    memory = probe_machine().memory
    rows = subprocess.run(["free", "-b"], capture_output=True, text=True, check=True).stdout.splitlines()
    total, *_, available = (int(word) for word in rows[1].split()[1:])
    assert memory.total_bytes == total
    assert memory.available_bytes is not None and abs(memory.available_bytes - available) < 0.1 * available
    assert memory.swap_total_bytes == int(rows[2].split()[1])


def test_this_machine_is_probed_quickly() -> None:
    probe_machine()
    began = time.process_time()
    machine = probe_machine()
    assert time.process_time() - began < 0.5
    assert machine.usable and machine.cpu.features and machine.memory.allowed_bytes
    if hasattr(os, "sched_getaffinity"):
        assert set(machine.usable) <= os.sched_getaffinity(0)
