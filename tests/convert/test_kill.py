"""kill -9 at random moments of a conversion leaves either no output or a whole one, and no litter for long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("name", "quant", "trials"), [("m.gguf", "q5_1", 50), ("model", "int4", 25)])
def test_the_target_is_absent_or_whole(name: str, quant: str, trials: int, tmp_path: Path) -> None:
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, str(HERE / "kill_helper.py"), str(tmp_path), name, quant, str(trials), "1"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    found = json.loads(ran.stdout)
    assert found["other"] == 0
    assert found["absent"] + found["whole"] == trials
    assert found["absent"] > trials // 4, "the kills came too late to mean anything"
    assert found["leftovers"] > 0, "no kill hit a conversion that was writing"
    assert found["at_the_end"] == [name]
