"""Limits are read from recorded trees of both control-group versions; the running machine is only checked for sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wattwise_devices.bandwidth import read_bandwidth
from wattwise_devices.limits import memory_limits, usable_cpus
from wattwise_devices.process_memory import reset_peak, resident_memory

GIB = 1 << 30
MEMINFO = "MemTotal:       8388608 kB\nMemFree:  100 kB\nMemAvailable:   4194304 kB\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_no_group_no_limit(tmp_path: Path) -> None:
    limits = memory_limits(tree(tmp_path, {}))
    assert (limits.total_bytes, limits.limit_bytes, limits.allowed_bytes) == (8 * GIB, None, 4 * GIB)


def test_v2_takes_the_tightest_ancestor(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/app.scope\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{2 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{GIB}\n",
            "sys/fs/cgroup/user.slice/app.scope/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/app.scope/cpu.max": "150000 100000\n",
        },
    )
    limits = memory_limits(root)
    assert (limits.limit_bytes, limits.allowed_bytes) == (2 * GIB, GIB)
    assert usable_cpus(root) == 1


def test_v1_unlimited_and_limited(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "5:memory:/box\n3:cpu,cpuacct:/box\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{3 * GIB}\n",
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB // 2}\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
    }
    root = tree(tmp_path, files)
    assert memory_limits(root).limit_bytes == 3 * GIB
    assert memory_limits(root).allowed_bytes == 3 * GIB - GIB // 2
    assert usable_cpus(root) >= 1
    (root / "sys/fs/cgroup/memory/box/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limits(root).limit_bytes is None


def test_a_group_wider_than_the_machine_is_no_limit(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{99 * GIB}\n"}
    assert memory_limits(tree(tmp_path, files)).limit_bytes is None


@pytest.mark.parametrize("text", ["", "garbage", "MemTotal: x kB\n", "\x00\xff"])
def test_unreadable_files_give_unknown_not_errors(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, {"proc/meminfo": text, "proc/self/cgroup": text})
    assert memory_limits(root).total_bytes is None
    assert usable_cpus(root) >= 1


def test_resident_memory_follows_an_allocation() -> None:
    before = resident_memory()
    if before.resident_bytes is None:
        pytest.skip("this system does not tell")
    block = np.ones(64 << 20, np.uint8)
    after = resident_memory()
    assert after.resident_bytes is not None and after.peak_bytes is not None
    assert after.resident_bytes - before.resident_bytes > 0.9 * block.nbytes
    del block
    if reset_peak():
        peak = resident_memory().peak_bytes
        assert peak is not None and peak < after.peak_bytes - (32 << 20)


def test_read_bandwidth_is_a_memory_rate() -> None:
    rate = read_bandwidth(1, array_bytes=32 << 20, repeats=2)
    assert 0.2 < rate < 2000
