"""Attention scores: against the reference on real models, with trees, and when they are no longer true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.data import DATA, needs_data
from support.onnx_folders import write_onnx_folder
from support.specs import TINY_SPECS, random_weights
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, ForwardCancelled, LoadSpec
from wattwise_runtimes.engines.onnx import BACKEND
from wattwise_runtimes.engines.onnx.engine import OnnxEngine
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.spec import ModelSpec

SPEC = TINY_SPECS["llama"]
IDS = [int(i) for i in np.random.default_rng(1).integers(3, SPEC.vocab, 40)]
TREE, PARENTS = [7, 9, 11, 9, 30, 31], [-1, 0, 0, 1, 2, -1]


def make(folder: Path, spec: ModelSpec = SPEC, **options: object) -> OnnxEngine:
    path = write_onnx_folder(folder / "m", spec, random_weights(spec))
    fields = {"context": 64, "chunk": 16, "kv_type": "f32", "attention_scores": True, **options}
    engine = BACKEND.load(open_artifact(path), LoadSpec(**fields))  # type: ignore[arg-type]
    assert isinstance(engine, OnnxEngine)
    return engine


def assert_same_scores(engine: OnnxEngine, ref: ReferenceEngine, tolerance: float = 1e-5) -> None:
    got, want = engine.kv.view().attention, ref.kv.view().attention
    assert got is not None
    assert want is not None
    for layer in range(engine.spec.layers):
        assert got(layer).shape == want(layer).shape
        assert np.abs(got(layer) - want(layer)).max() < tolerance


@needs_data
@pytest.mark.parametrize("name", ["stories260K", "stories3M"])
def test_scores_of_a_real_model(name: str, tmp_path: Path) -> None:
    from wattwise_convert.onnx import export
    from wattwise_convert.sources import open_checkpoint

    checkpoint = open_checkpoint(DATA / "models" / f"{name}-hf")
    folder = export(checkpoint, tmp_path / "m", quant="fp32").path
    load = LoadSpec(context=256, chunk=64, kv_type="f32", attention_scores=True)
    engine = BACKEND.load(open_artifact(folder), load)
    assert isinstance(engine, OnnxEngine)
    weights = {n: t.read_rows(0, t.shape[0]) for n, t in checkpoint.tensors.items()}
    ref = ReferenceEngine(checkpoint.spec, weights, load)
    ids = np.random.default_rng(0).integers(3, checkpoint.spec.vocab, 200)
    for part in (ids[:150], ids[150:199], ids[199:]):
        logits, want = engine.forward(Batch(part)), ref.forward(Batch(part))
        assert np.abs(logits - want).max() < 1e-3 * want.std()
        assert_same_scores(engine, ref, 1e-4)
    for e in (engine, ref):
        e.kv.drop(range(5, 60))
        e.forward(Batch(ids[:3]))
    assert_same_scores(engine, ref, 1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("leaves", [0, 4])
def test_scores_under_windows_and_softcaps_and_with_trees(name: str, leaves: int, tmp_path: Path) -> None:
    spec = TINY_SPECS[name]
    engine = make(tmp_path, spec, tree_leaves=leaves)
    ref = ReferenceEngine(spec, random_weights(spec), LoadSpec(context=64, chunk=16, kv_type="f32"))
    for ids in (IDS[:20], IDS[20:21]):
        for e in (engine, ref):
            e.forward(Batch(ids))
        assert_same_scores(engine, ref)
    if not leaves:
        return
    want = ref.forward(Batch(TREE, parents=PARENTS, logits="all"))
    got = engine.forward(Batch(TREE, parents=PARENTS, logits="all"))
    assert np.abs(got - want).max() < 1e-4 * want.std()
    for e in (engine, ref):
        e.kv.accept([0, 2])
    assert engine.kv.view().attention is None
    for e in (engine, ref):
        e.forward(Batch(IDS[21:30]))
    assert_same_scores(engine, ref)


def test_scores_end_with_any_change_of_rows(tmp_path: Path) -> None:
    engine = make(tmp_path)
    engine.forward(Batch(IDS[:10]))
    blob = engine.kv.export()
    newest = np.full((SPEC.layers, SPEC.kv_heads, 1), 9)
    changes = {
        "drop": lambda: engine.kv.drop([3]),
        "drop_by_head": lambda: engine.kv.drop_by_head(newest),
        "truncate": lambda: engine.kv.truncate(5),
        "shift": lambda: engine.kv.shift(5, 10, 2),
        "clear": engine.kv.clear,
        "restore": lambda: (engine.kv.clear(), engine.kv.restore(blob)),
    }
    for name, change in changes.items():
        engine.kv.clear()
        engine.forward(Batch(IDS[:10]))
        assert engine.kv.view().attention is not None
        change()
        assert engine.kv.view().attention is None, name


def test_a_cancelled_chunk_shows_the_chunk_before_it_or_nothing(tmp_path: Path) -> None:
    engine = make(tmp_path)
    ref = ReferenceEngine(SPEC, random_weights(SPEC), LoadSpec(context=64, chunk=16, kv_type="f32"))
    answers = iter([False, True])
    with pytest.raises(ForwardCancelled):
        engine.forward(Batch(IDS), lambda: next(answers))
    ref.forward(Batch(IDS[:16]))
    assert_same_scores(engine, ref)


def test_scores_are_copies(tmp_path: Path) -> None:
    engine = make(tmp_path)
    engine.forward(Batch(IDS[:10]))
    attention = engine.kv.view().attention
    assert attention is not None
    first = attention(0)
    kept = first.copy()
    engine.forward(Batch(IDS[10:20]))
    assert np.array_equal(first, kept)


def test_without_asking_there_are_none(tmp_path: Path) -> None:
    engine = make(tmp_path, attention_scores=False)
    assert not engine.capabilities.attention
    engine.forward(Batch(IDS[:10]))
    assert engine.kv.view().attention is None


def test_capabilities_are_known_before_loading(tmp_path: Path) -> None:
    for kv_type in ("f32", "int8"):
        for options in ({}, {"attention_scores": True}, {"tree_leaves": 3}):
            for name in ("llama", "gpt2", "gemma2"):
                spec = TINY_SPECS[name]
                folder = tmp_path / f"{name}-{kv_type}-{len(list(tmp_path.iterdir()))}"
                path = write_onnx_folder(folder, spec, random_weights(spec))
                load = LoadSpec(**{"context": 64, "chunk": 8, "kv_type": kv_type, **options})
                artifact = open_artifact(path)
                assert BACKEND.capabilities(artifact, load) == BACKEND.load(artifact, load).capabilities
