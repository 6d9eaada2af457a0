"""A session goes on in another process exactly as it would have in this one: every engine, every way to evict."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.data import ROOT
from support.session_models import NEEDS, Recorder, session_model, told
from wattwise.prefix import NO_TOKENS

TURNS = ("hello there, this is a text to read for the model", "and another one, so that rows are lost", "and a third")
LAST = "And now the last."
SAMPLED = {"max_tokens": 24, "temperature": 1.0}
POLICIES = (None, "keydiff:96:token:keep", "window:96", "h2o:96:token:keep", "snapkv:96:token:close")
BY_HEAD = ("keydiff:96:head", "h2o:96:head")


def elsewhere(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The jobs in one new process."""
    done = subprocess.run(
        [sys.executable, "-m", "support.session_models"], input=json.dumps(jobs), capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_twice(
    models: Path, home: Path, tmp_path: Path, options: dict[str, Any], number: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the last turn was here, and the job that says it elsewhere, from what was on disk before it."""
    shutil.rmtree(home / "data", ignore_errors=True)
    with session_model(models, **options) as model:
        recorder = Recorder(model)
        chat = model.conversation("Be brief.", session="new")
        for turn, text in enumerate(TURNS):
            chat.say(f"{turn} {text}", seed=turn, **SAMPLED)
        copy = tmp_path / f"home-{number}"
        shutil.copytree(home, copy)
        recorder.start()
        here = told(chat.say(LAST, seed=9, **SAMPLED), recorder)
    job = {
        "folder": str(models), "home": str(copy), "model": options, "session": "latest", "text": LAST,
        "options": {"seed": 9, **SAMPLED},
    }  # fmt: skip
    return here, job


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "kv_type"),
    [("reference", "f32"), ("onnx", "f32"), ("onnx", "int8"), ("llamacpp", "f32"), ("llamacpp", "f16")],
)
def test_the_next_turn_has_the_same_logits(engine: str, kv_type: str, models: Path, tmp_path: Path) -> None:
    if NEEDS[engine] is not None:
        pytest.importorskip(NEEDS[engine])
    policies = POLICIES if engine == "llamacpp" else POLICIES + BY_HEAD
    home = Path(os.environ["WATTWISE_HOME"])
    pairs = [
        run_twice(models, home, tmp_path, {"engine": engine, "kv_type": kv_type, "kv_policy": policy}, number)
        for number, policy in enumerate(policies)
    ]
    for policy, (here, _), there in zip(policies, pairs, elsewhere([job for _, job in pairs]), strict=True):
        assert "SessionResumed" in there.pop("events"), policy
        del here["events"]
        assert there == here, policy
        assert here["cache_n"] > 200, "rows were reused"
        assert (here["evicted"] > 0) == (policy is not None)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference", "onnx", "llamacpp"])
def test_sliding_windows_go_on_rightly(engine: str, models: Path, tmp_path: Path) -> None:
    """llama.cpp saves of their rows only what the newest one sees: one goes on from there, or reads again."""
    if NEEDS[engine] is not None:
        pytest.importorskip(NEEDS[engine])
    import dataclasses

    from support.chat_model import SPEC
    from support.specs import TINY_SPECS

    spec = dataclasses.replace(
        TINY_SPECS["gemma2"], vocab=SPEC.vocab, context=SPEC.context, eos_ids=SPEC.eos_ids, bos_id=None
    )
    with session_model(models, engine, spec=spec) as model:
        chat = model.conversation(session="new")
        for turn, text in enumerate(TURNS):
            chat.say(text, seed=turn, max_tokens=8, stop="\n", temperature=0.1)
        ids = list(model.held.ids)
        session = chat.session.id
    for prompt in ([*ids, 65, 66, 67], [*ids[: len(ids) - 40], 65, 66, 67]):
        with session_model(models, engine, spec=spec) as fresh, session_model(models, engine, spec=spec) as twin:
            want = read(fresh, prompt)
            chat = twin.conversation(session=session)
            chat._session.recall(prompt, NO_TOKENS, lambda event: None)
            start = twin.held.rewind_to(prompt)
            got = read(twin, prompt[start:])
            assert abs(got - want).max() < 1e-3 * want.std(), "rows that are missing would show"
            chat.close()
            if prompt[: len(ids)] == ids:
                assert start == len(ids)


def read(model: Any, ids: list[int]) -> Any:
    from wattwise_runtimes.contracts import Batch

    return model.engine.forward(Batch(ids)).copy()[0]
