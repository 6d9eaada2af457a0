"""Folders that others wrote: onnxruntime-genai's own builder, and an old graph with a growing cache."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from support.data import DATA, needs_data
from wattwise_devices.errors import BackendError, ContextOverflow, PlanError
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.onnx import BACKEND

GROWING = DATA / "models" / "random-gpt2-onnx-genai"
LOAD = LoadSpec(context=64, chunk=16, kv_type="f32")


def straight_from_onnxruntime(ids: list[int]) -> np.ndarray:
    """Logits of one run over all ids with an empty cache, without any code of ours."""
    session = ort.InferenceSession(GROWING / "past.onnx", providers=["CPUExecutionProvider"])
    feeds = {
        "input_ids": np.array([ids], np.int32),
        "position_ids": np.arange(len(ids), dtype=np.int32)[None],
        "attention_mask": np.ones((1, len(ids)), np.int32),
    }
    feeds |= {f"past_{i}": np.zeros((2, 1, 4, 0, 8), np.float32) for i in range(5)}
    return session.run(["logits"], feeds)[0][0]


@needs_data
def test_a_growing_cache_gives_the_same_logits_however_it_is_fed() -> None:
    ids = [int(i) for i in np.random.default_rng(0).integers(3, 999, 40)]
    want = straight_from_onnxruntime(ids)
    engine = BACKEND.load(open_artifact(GROWING), LOAD)
    tolerance = 1e-4 * want.std()
    assert np.abs(engine.forward(Batch(ids, logits="all")) - want).max() < tolerance
    engine.kv.truncate(11)
    assert engine.kv.length == engine.kv.next_position == 11
    rest = [engine.forward(Batch([i]))[0].copy() for i in ids[11:]]
    assert np.abs(np.stack(rest) - want[11:]).max() < tolerance
    engine.kv.clear()
    assert np.abs(engine.forward(Batch(ids, logits=[3, 20, 39])) - want[[3, 20, 39]]).max() < tolerance


@needs_data
def test_a_growing_cache_says_what_it_lacks() -> None:
    artifact = open_artifact(GROWING)
    engine = BACKEND.load(artifact, LOAD)
    assert dataclasses.replace(engine.capabilities, keys=False) == type(engine.capabilities)()
    engine.forward(Batch([5, 6, 7]))
    assert engine.kv.view().keys(0).shape == (4, 3, 8)
    for call in (lambda: engine.kv.drop([0]), engine.kv.export, lambda: engine.kv.restore(b""),
                 lambda: engine.forward(Batch([1], parents=[-1]))):  # fmt: skip
        with pytest.raises(PlanError):
            call()
    with pytest.raises(ContextOverflow):
        engine.forward(Batch([5] * 62))
    with pytest.raises(PlanError, match="tree_leaves"):
        BACKEND.load(artifact, dataclasses.replace(LOAD, tree_leaves=2))
    engine.close()
    with pytest.raises(BackendError):
        engine.forward(Batch([5]))


@pytest.mark.reference
@pytest.mark.slow
@pytest.mark.parametrize("pruned", [False, True])
def test_a_folder_of_genais_own_builder(pruned: bool, tmp_path: Path) -> None:
    for module in ("onnxruntime_genai", "torch", "transformers", "onnx_ir"):
        pytest.importorskip(module)
    from support.hf_models import hf_logits, make_hf_folder

    source = make_hf_folder("llama", tmp_path / "hf")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", tmp_path / "genai",
               "-p", "fp32", "-e", "cpu", "-c", tmp_path / "cache"]  # fmt: skip
    if pruned:
        command += ["--extra_options", "prune_lm_head=true"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(c) for c in command], check=True, capture_output=True, env=environment)
    artifact = open_artifact(tmp_path / "genai")
    assert artifact.quant == "fp32"
    engine = BACKEND.load(artifact, LOAD)
    ids = [int(i) for i in np.random.default_rng(0).integers(3, 250, 40)]
    want = hf_logits(source, ids)
    tolerance = 1e-3 * want.std()
    assert np.abs(engine.forward(Batch(ids, logits="all")) - want).max() < tolerance
    engine.kv.truncate(5)
    assert np.abs(engine.forward(Batch(ids[5:], logits=[2, 34])) - want[[7, 39]]).max() < tolerance
    engine.kv.clear()
    single = np.stack([engine.forward(Batch([i]))[0].copy() for i in ids])
    assert np.abs(single - want).max() < tolerance
    assert engine.capabilities.drop == "none"
    with pytest.raises(PlanError, match="position"):
        engine.kv.drop([3])
    blob = engine.kv.export()
    engine.kv.clear()
    engine.kv.restore(blob)
    assert engine.kv.next_position == 40
    with pytest.raises(PlanError, match="tree_leaves"):
        BACKEND.load(artifact, dataclasses.replace(LOAD, tree_leaves=2))
