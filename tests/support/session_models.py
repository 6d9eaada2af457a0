"""Models over real files and engines, for saved conversations: `python -m support.session_models` is another process.

The tests run a conversation in their own process and the next turn of it in another one; what both compute in that turn
is compared bit by bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from support.chat_model import SPEC, byte_tokenizer, fake_plan
from support.gguf_files import write_tiny_gguf
from support.specs import random_weights
from wattwise.kv.eviction import parse_eviction
from wattwise.model import Model
from wattwise.reply import Reply
from wattwise_runtimes.contracts import Artifact, Batch
from wattwise_runtimes.spec import ModelSpec

LEVEL = {"reference": "head", "onnx": "head", "llamacpp": "token"}  # the finest that each engine has
NEEDS = {"reference": None, "onnx": "onnxruntime", "llamacpp": "llama_cpp"}


def model_file(engine: str, folder: Path, spec: ModelSpec = SPEC, seed: int = 0) -> Artifact:
    """A tiny random model in the engine's format, made once."""
    weights = random_weights(spec, seed)
    if engine == "onnx":
        from support.onnx_folders import write_onnx_folder

        path = folder / f"onnx-{spec.architecture}-{seed}"
        if not path.is_dir():
            write_onnx_folder(path, spec, weights)
        return Artifact(path=path, format="onnx", spec=spec, weights_bytes=1)
    path = folder / f"tiny-{spec.architecture}-{seed}.gguf"
    if not path.is_file():
        write_tiny_gguf(path, spec, weights)
    return Artifact(path=path, format="gguf", spec=spec, weights_bytes=1)


def session_model(
    folder: Path, engine: str = "reference", *, kv_policy: str | None = None, kv_type: str = "f32", context: int = 512,
    spec: ModelSpec = SPEC, seed: int = 0, **plan: Any,
) -> Model:  # fmt: skip
    """A model that chats, over a file below `folder`. plan: further fields of its plan."""
    from wattwise_runtimes.registry import get_backend

    artifact = model_file(engine, folder, spec, seed)
    eviction = None
    if kv_policy is not None:
        eviction = parse_eviction(kv_policy).resolve(context=context, row_bytes=1, level=LEVEL[engine])  # type: ignore[arg-type]
        context = eviction.rows
    decided = dataclasses.replace(
        fake_plan(engine, context, eviction), artifact=artifact, kv_type=kv_type, model=str(artifact.path),
        chunk=eviction.block if eviction is not None else 16, budget_bytes=None, **plan,
    )  # fmt: skip
    return Model(decided, get_backend(engine).load(artifact, decided.load_spec()), byte_tokenizer(), load_ms=1.0)


class Recorder:
    """Every logit that a model's engine computes, as one hash, and how many tokens it was given."""

    def __init__(self, model: Model) -> None:
        self.tokens = 0
        self._digest = hashlib.sha256()
        self._forward = model.engine.forward
        model.engine.forward = self._record  # type: ignore[method-assign]

    def _record(self, batch: Batch, *options: Any) -> np.ndarray:
        logits = self._forward(batch, *options)
        self.tokens += len(batch.tokens)
        self._digest.update(np.ascontiguousarray(logits).tobytes())
        return logits

    def start(self) -> None:
        """Count from here."""
        self.tokens, self._digest = 0, hashlib.sha256()

    @property
    def digest(self) -> str:
        """Of the logits so far."""
        return self._digest.hexdigest()


def told(reply: Reply, recorder: Recorder) -> dict[str, Any]:
    """What two processes must agree on, and what they did for it."""
    return {
        "ids": reply.ids, "logits": recorder.digest, "computed": recorder.tokens, "cache_n": reply.stats.cache_n,
        "evicted": reply.stats.kv_evicted, "events": [type(event).__name__ for event in reply.events],
    }  # fmt: skip


def main(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each job the turn that it asks for: {"folder", "home", "model": options, "session", "text", "options"}."""
    import os

    answers = []
    for job in jobs:
        os.environ["WATTWISE_HOME"] = job["home"]
        with session_model(Path(job["folder"]), **job["model"]) as model:
            recorder = Recorder(model)
            chat = model.conversation(session=job["session"])
            answers.append(told(chat.say(job["text"], **job["options"]), recorder))
    return answers


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
