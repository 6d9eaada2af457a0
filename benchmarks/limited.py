"""A command under a real memory limit: a control group of its own (v1 or v2), whose limit counts every page."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


class NoControlGroups(Exception):
    """This system does not let us make one."""


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """The folder of a fresh group with that limit."""
    v2 = (_ROOT / "cgroup.controllers").exists()
    folder = (_ROOT if v2 else _ROOT / "memory") / f"wattwise-bench-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
        if v2:
            (folder / "memory.swap.max").write_text("0")
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        raise NoControlGroups(f"no memory control group can be made here: {error}") from error
    try:
        yield folder
    finally:
        folder.rmdir()


def run_limited(
    command: Sequence[str], limit_bytes: int, *, env: dict[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """The finished command; return code -9 if the kernel killed it because it needed more."""
    with memory_group(limit_bytes) as folder:
        script = f'echo $$ > {folder}/cgroup.procs && exec "$@"'  # joins before it becomes the command
        return subprocess.run(
            ["sh", "-c", script, "sh", *command],
            capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **(env or {})}, check=False,
        )  # fmt: skip
