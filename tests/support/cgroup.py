"""Runs a command under a real memory limit, as the benchmarks do. Skips where no control group can be made."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import limited
import pytest


def run_limited(
    command: Sequence[str], limit_bytes: int, env: dict[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """The finished command; killed by the kernel (return code -9) if it needed more than the limit."""
    try:
        return limited.run_limited(command, limit_bytes, env=env, timeout_s=timeout_s)
    except limited.NoControlGroups as reason:
        pytest.skip(str(reason))
