"""The one door to the operating system: files below a root, short commands, a clock.

Everything that reads sensors or limits takes a `System`, so that tests run on recorded trees, made-up command
output and a simulated clock. Nothing here raises: what cannot be read is None.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

COMMAND_TIMEOUT_S = 2.0


def run_command(arguments: Sequence[str]) -> str | None:
    """Standard output of a command that ended well within COMMAND_TIMEOUT_S, else None."""
    try:
        done = subprocess.run(
            list(arguments), stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """root: where /proc and /sys are found. run: a command's output or None. clock_s: monotonic seconds."""

    root: Path = Path("/")
    run: Callable[[Sequence[str]], str | None] = run_command
    clock_s: Callable[[], float] = time.monotonic

    def path(self, path: str) -> Path:
        """`path` ("/sys/..." or "sys/...") below the root."""
        return self.root / path.lstrip("/")

    def read_text(self, path: str | Path) -> str | None:
        """A file's text without blanks at its ends; None if it is absent or may not be read."""
        try:
            with self._below_root(path).open("rb") as stream:
                return stream.read(1 << 20).decode("utf-8", "replace").strip("\0 \t\r\n")
        except OSError:
            return None

    def read_int(self, path: str | Path) -> int | None:
        """A file that holds one whole number; None if it holds anything else."""
        text = self.read_text(path)
        try:
            return int(text, 10) if text else None
        except ValueError:
            return None

    def glob(self, pattern: str) -> list[Path]:
        """Paths below the root that match, sorted by name."""
        try:
            return sorted(self.root.glob(pattern.lstrip("/")))
        except OSError:
            return []

    def _below_root(self, path: str | Path) -> Path:
        return path if isinstance(path, Path) else self.path(path)
