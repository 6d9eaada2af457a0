"""Plans under a real memory limit: what is accepted runs inside it as predicted, what is refused says what would fit.

Each run is a fresh process in a control group whose limit is the budget, so a wrong plan is a killed process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.cgroup import run_limited
from support.data import DATA, needs_data

MIB = 1 << 20
ENGINES = {"llamacpp": "llama_cpp", "onnx": "onnxruntime"}
SENTENCE = "Once upon a time there was a little boy. "  # 11 tokens or so


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The real 3M-parameter model for each engine, and the home that keeps the measured runtime costs."""
    from wattwise_convert.api import convert

    folder = tmp_path_factory.mktemp("budget")
    source = DATA / "models" / "stories3M-hf"
    convert(source, folder / "stories.gguf", quant="q8_0")
    convert(source, folder / "stories-onnx", quant="int8")
    return {"llamacpp": folder / "stories.gguf", "onnx": folder / "stories-onnx", "home": folder / "home"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "wattwise", *words]


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_budgets_from_too_small_to_ample(engine: str, model_files: dict[str, Path]) -> None:
    pytest.importorskip(ENGINES[engine])
    model, env = str(model_files[engine]), {"WATTWISE_HOME": str(model_files["home"])}
    ample = json.loads(_run(command("plan", model, "--engine", engine, "--json"), env).stdout)
    total, runtime = ample["ledger"]["total_bytes"], ample["ledger"]["runtime_bytes"]
    lowest = runtime // 2
    budgets = [round(lowest + (1.15 * total - lowest) * i / 19) for i in range(20)]
    accepted = refused = 0
    errors = []
    for budget in budgets:
        planned = _run(command("plan", model, "--engine", engine, "--memory", str(budget), "--json"), env)
        if planned.returncode == 3:
            refused += 1
            error = json.loads(planned.stdout)["error"]
            assert error["needed"] > error["allowed"] == budget
            assert error["would_fit"]
            continue
        assert planned.returncode == 0, planned.stderr
        accepted += 1
        plan = json.loads(planned.stdout)
        prompt = SENTENCE * (plan["context"] // 15)
        words = ["run", model, prompt, "--raw", "--engine", engine, "--memory", str(budget), "--json"]
        # a long prompt and the whole context, so that every buffer is touched
        words += ["--temperature", "0", "--max-tokens", str(plan["context"])]
        done = run_limited(command(*words), budget, env)
        assert done.returncode == 0, f"budget {budget}: exit {done.returncode}: {done.stderr[-400:]}"
        report = json.loads(done.stdout)["report"]
        peak, predicted = report["peak_bytes"], report["predicted"]["total_bytes"]
        assert peak <= budget, f"peak {peak / MIB:.1f} MiB over the budget of {budget / MIB:.1f} MiB"
        errors.append(abs(peak - predicted) / peak)
        tolerance = 0.10 if peak < 100_000_000 else 0.05
        assert errors[-1] <= tolerance, f"predicted {predicted / MIB:.1f} MiB, measured {peak / MIB:.1f} MiB"
    assert accepted >= 5
    assert refused >= 3


def _run(words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **env}, timeout=120, check=False)
