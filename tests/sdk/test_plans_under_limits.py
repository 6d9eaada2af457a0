"""Plans in real cages: an affinity mask, a control group's CPU quota and memory limit. The plan has to follow each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.cgroup import run_limited

pytestmark = [pytest.mark.slow, pytest.mark.llama]
_ROOT = Path("/sys/fs/cgroup")
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _free_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    monkeypatch.delenv("WATTWISE_THREADS")


def plan_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(command), capture_output=True, text=True, timeout=120, check=False)


PLAN = [sys.executable, "-m", "wattwise", "plan", "--json"]


@contextmanager
def quota_of_one_core() -> Iterator[Path]:
    """A control group (v1 or v2) with one core's worth of time."""
    v2 = (_ROOT / "cgroup.controllers").exists()
    folder = (_ROOT if v2 else _ROOT / "cpu") / f"wattwise-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        if v2:
            (folder / "cpu.max").write_text("100000 100000")
        else:
            (folder / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no CPU control group can be made here: {error}")
    try:
        yield folder
    finally:
        folder.rmdir()


def test_one_cpu_by_affinity_means_one_thread() -> None:
    if shutil.which("taskset") is None:
        pytest.skip("taskset is not installed")
    cpu = str(min(os.sched_getaffinity(0)))
    plan = plan_of(run(["taskset", "-c", cpu, *PLAN]))
    assert (plan["threads"], plan["threads_batch"]) == (1, 1)


def test_a_quota_of_one_core_means_one_thread() -> None:
    with quota_of_one_core() as folder:
        script = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
        plan = plan_of(run(["sh", "-c", script, "sh", *PLAN]))
    assert (plan["threads"], plan["threads_batch"]) == (1, 1)


def test_the_memory_of_a_control_group_is_the_budget() -> None:
    plan = plan_of(run_limited(PLAN, GIB))
    assert plan["budget_source"] == "left in this control group"
    assert 0.5 * GIB < plan["budget_bytes"] <= GIB
