"""Where the shared real data is, and the one skip reason for tests that need it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("WATTWISE_DATA", ROOT.parent / "shared" / "data"))

needs_data = pytest.mark.skipif(
    not (DATA / "models").is_dir(), reason=f"no shared data at {DATA} (set WATTWISE_DATA to its folder)"
)
