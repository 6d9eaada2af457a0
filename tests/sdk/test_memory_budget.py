"""Plans under a real memory limit: what is accepted runs inside it as predicted, what is refused says what would fit.

Each run is a fresh process in a control group whose limit is the budget, so a wrong plan is a killed process. Prompts
fill a chunk and replies fill the context, so that every buffer is touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.cgroup import run_limited
from support.chat_model import byte_tokenizer
from support.checkpoints import checkpoint_of
from support.data import DATA, needs_data
from support.specs import random_weights
from wattwise_runtimes.spec import ModelSpec, RopeSpec

MIB = 1 << 20
ENGINES = {"llamacpp": "llama_cpp", "onnx": "onnxruntime"}
QUANTS = {"llamacpp": ("model.gguf", "q8_0"), "onnx": ("model-onnx", "int8")}
SENTENCE = "Once upon a time there was a little boy. "
SIXTY_MILLION = ModelSpec(
    architecture="llama", layers=16, hidden=512, heads=8, kv_heads=4, head_dim=64, ffn=1536, vocab=259, context=1024,
    rope=RopeSpec(dims=64), tied_head=True, eos_ids=(257,),
)  # fmt: skip

pytestmark = pytest.mark.slow


def wattwise(*words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wattwise", *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=120, check=False)


def check_budget(
    engine: str, model: str, budget: int, characters: float, env: dict[str, str], more: Sequence[str] = ()
) -> bool:
    """Plan and, if accepted, run; whether it was accepted. characters: of the prompt, per token of the context."""
    planned = wattwise("plan", model, "--engine", engine, "--memory", str(budget), *more, "--json", env=env)
    if planned.returncode == 3:
        error = json.loads(planned.stdout)["error"]
        assert error["needed"] > error["allowed"] == budget
        assert error["would_fit"]
        return False
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    prompt = (SENTENCE * 100)[: int(characters * plan["context"])]
    words = ["run", model, prompt, "--raw", "--engine", engine, "--memory", str(budget), *more, "--json"]
    words += ["--temperature", "0", "--max-tokens", str(plan["context"])]
    done = run_limited([sys.executable, "-m", "wattwise", *words], budget, env)
    assert done.returncode == 0, f"budget {budget}: exit {done.returncode}: {done.stderr[-400:]}"
    report = json.loads(done.stdout)["report"]
    peak, predicted = report["peak_bytes"], report["predicted"]["total_bytes"]
    assert peak <= budget, f"peak {peak / MIB:.1f} MiB over the budget of {budget / MIB:.1f} MiB"
    tolerance = 0.10 if peak < 100_000_000 else 0.05
    error = abs(peak - predicted) / peak
    assert error <= tolerance, f"predicted {predicted / MIB:.1f} MiB, measured {peak / MIB:.1f} MiB"
    return True


def sweep(engine: str, model: str, count: int, characters: float, env: dict[str, str]) -> tuple[int, int]:
    """(accepted, refused) of `count` budgets, from half of what must be refused to more than ample."""
    ample: dict[str, Any] = json.loads(wattwise("plan", model, "--engine", engine, "--json", env=env).stdout)
    total, runtime = ample["ledger"]["total_bytes"], ample["ledger"]["runtime_bytes"]
    lowest, highest = runtime // 2, 1.15 * total
    budgets = [round(lowest + (highest - lowest) * i / (count - 1)) for i in range(count)]
    accepted = sum(check_budget(engine, model, budget, characters, env) for budget in budgets)
    return accepted, count - accepted


@needs_data
@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_budgets_on_a_real_model(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(ENGINES[engine])
    from wattwise_convert.api import convert

    name, quant = QUANTS[engine]
    model = convert(DATA / "models" / "stories3M-hf", tmp_path / name, quant=quant).path
    accepted, refused = sweep(engine, str(model), 20, 2, {"WATTWISE_HOME": str(tmp_path / "home")})
    assert accepted >= 5
    assert refused >= 3


@pytest.mark.parametrize("policy", ["window:192", "keydiff:192", "snapkv:192"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_of_four_times_the_kv_budget_stays_inside_the_plan(engine: str, policy: str, tmp_path: Path) -> None:
    pytest.importorskip(ENGINES[engine])
    from wattwise_convert.api import convert

    name, quant = QUANTS[engine]
    checkpoint = checkpoint_of(SIXTY_MILLION, random_weights(SIXTY_MILLION), byte_tokenizer())
    model = str(convert(checkpoint, tmp_path / name, quant=quant).path)
    env = {"WATTWISE_HOME": str(tmp_path / "home")}
    evicting = ["--engine", engine, "--kv", policy]
    total = json.loads(wattwise("plan", model, *evicting, "--json", env=env).stdout)["ledger"]["total_bytes"]
    assert check_budget(engine, model, round(1.04 * total), 0.75 * 4, env, evicting)


@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_budgets_on_a_model_of_50_megabytes(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(ENGINES[engine])
    from wattwise_convert.api import convert

    name, quant = QUANTS[engine]
    checkpoint = checkpoint_of(SIXTY_MILLION, random_weights(SIXTY_MILLION), byte_tokenizer())
    model = convert(checkpoint, tmp_path / name, quant=quant).path
    accepted, refused = sweep(engine, str(model), 20, 0.75, {"WATTWISE_HOME": str(tmp_path / "home")})
    assert accepted >= 1
    assert refused >= 3
