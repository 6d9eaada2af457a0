"""What an export wrote, the same for every format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was written. notes: every place where a weight is stored in another way than asked for."""

    path: Path
    files: tuple[Path, ...]
    bytes: int
    notes: tuple[str, ...] = ()
