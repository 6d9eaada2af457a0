"""The probe inside real control groups: a CPU quota and a memory limit that the kernel enforces. Skips where none can
be made."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from support.cgroup import run_limited

GIB = 1 << 30
_ROOT = Path("/sys/fs/cgroup")
_CODE = (
    "import json; from wattwise_devices.machine import probe_machine; m = probe_machine();"
    "print(json.dumps([m.quota_cpus, m.usable_cpus, m.memory.limit_bytes, m.memory.allowed_bytes]))"
)


def test_a_memory_limit_of_one_gib() -> None:
    done = run_limited([sys.executable, "-c", _CODE], GIB)
    assert done.returncode == 0, done.stderr
    _, _, limit, allowed = json.loads(done.stdout)
    assert limit == GIB
    assert 0.5 * GIB < allowed < GIB, "the interpreter itself takes some"


@pytest.mark.parametrize("share", [0.5, 1.0, 1.25])
def test_a_cpu_quota(share: float) -> None:
    v2 = (_ROOT / "cgroup.controllers").exists()
    folder = (_ROOT if v2 else _ROOT / "cpu") / f"wattwise-test-{uuid.uuid4().hex[:8]}"
    quota_us = round(share * 100_000)
    try:
        folder.mkdir()
        if v2:
            (folder / "cpu.max").write_text(f"{quota_us} 100000")
        else:
            (folder / "cpu.cfs_period_us").write_text("100000")
            (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no CPU control group can be made here: {error}")
    try:
        script = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
        command = ["sh", "-c", script, "sh", sys.executable, "-c", _CODE]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    finally:
        folder.rmdir()
    quota, usable, *_ = json.loads(done.stdout)
    assert quota == share
    assert usable <= share
