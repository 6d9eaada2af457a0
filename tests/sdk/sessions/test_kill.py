"""kill -9 at random moments of saving, evicting and deleting: what is on disk is right, or it is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.data import ROOT

TRIALS = 40  # WATTWISE_KILLS=1000 takes some ten minutes


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_no_session_comes_back_wrong(tmp_path: Path) -> None:
    trials = int(os.environ.get("WATTWISE_KILLS", TRIALS))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_helper.py")), str(tmp_path), str(trials), "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=60 + 10 * trials, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["wrong"] == 0
    assert found["with_rows"] > trials // 4, "the kills came too early to mean anything"
    assert found["caught"] > 0, "no kill hit a file that was being written"
    assert found["litter"] == 0, "what the killed ones left goes away"
