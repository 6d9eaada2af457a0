"""Runs a command under a real memory limit: a control group of its own (v1 or v2). Skips where none can be made."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def _group(limit_bytes: int) -> Iterator[Path]:
    """A fresh group with that limit; pytest.skip where the system does not let us make one."""
    v2 = (_ROOT / "cgroup.controllers").exists()
    folder = (_ROOT if v2 else _ROOT / "memory") / f"wattwise-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
        if v2:
            (folder / "memory.swap.max").write_text("0")
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no memory control group can be made here: {error}")
    try:
        yield folder
    finally:
        folder.rmdir()


def run_limited(
    command: Sequence[str], limit_bytes: int, env: dict[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """The finished command; killed by the kernel (return code -9) if it needed more than the limit."""
    with _group(limit_bytes) as folder:
        # The shell joins the group before it becomes the command, so every page of the command counts.
        script = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
        return subprocess.run(
            ["sh", "-c", script, "sh", *command],
            capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **(env or {})}, check=False,
        )  # fmt: skip
