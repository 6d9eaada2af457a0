"""Rows that differ by head, and keys at other positions: against the reference, on real and on awkward models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.data import DATA, needs_data
from support.onnx_folders import write_onnx_folder
from support.specs import TINY_SPECS, random_weights
from wattwise_devices.errors import CorruptArtifact, PlanError
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.onnx import BACKEND
from wattwise_runtimes.engines.onnx.engine import OnnxEngine
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.spec import ModelSpec

IDS = [int(i) for i in np.random.default_rng(1).integers(3, 256, 40)]
LOAD = LoadSpec(context=64, chunk=16, kv_type="f32")


def make(folder: Path, spec: ModelSpec, load: LoadSpec = LOAD) -> OnnxEngine:
    engine = BACKEND.load(open_artifact(write_onnx_folder(folder / "m", spec, random_weights(spec))), load)
    assert isinstance(engine, OnnxEngine)
    return engine


def head_rows(spec: ModelSpec, length: int, kept: int, seed: int = 0) -> np.ndarray:
    """Other positions for each head, the newest among them, [layers, kv_heads, kept]."""
    rng = np.random.default_rng(seed)
    heads = [
        [*np.sort(rng.permutation(length - 1)[: kept - 1]), length - 1] for _ in range(spec.layers * spec.kv_heads)
    ]
    return np.array(heads).reshape(spec.layers, spec.kv_heads, kept)


@needs_data
def test_rows_by_head_on_a_real_model(tmp_path: Path) -> None:
    from wattwise_convert.onnx import export
    from wattwise_convert.sources import open_checkpoint

    checkpoint = open_checkpoint(DATA / "models" / "stories3M-hf")
    load = LoadSpec(context=256, chunk=64, kv_type="f32", attention_scores=True, tree_leaves=2)
    engine = BACKEND.load(open_artifact(export(checkpoint, tmp_path / "m", quant="fp32").path), load)
    weights = {n: t.read_rows(0, t.shape[0]) for n, t in checkpoint.tensors.items()}
    ref, spec = ReferenceEngine(checkpoint.spec, weights, load), checkpoint.spec
    ids = np.random.default_rng(0).integers(3, spec.vocab, 200)
    for e in (engine, ref):
        e.forward(Batch(ids[:150]))
        e.kv.drop_by_head(head_rows(spec, 150, 40))
        e.forward(Batch(ids[150:170]))
    assert engine.kv.length == ref.kv.length == 60
    tree = Batch([7, 9, 11], parents=[-1, 0, 0], logits="all")
    want = ref.forward(tree)
    assert np.abs(engine.forward(tree) - want).max() < 1e-3 * want.std()
    for e in (engine, ref):
        e.kv.accept([0, 2])
    want = ref.forward(Batch(ids[170:], logits="all"))
    assert np.abs(engine.forward(Batch(ids[170:], logits="all")) - want).max() < 1e-3 * want.std()
    view, wanted = engine.kv.view(), ref.kv.view()
    assert view.keys is not None and view.head_positions is not None and view.attention is not None
    assert wanted.keys is not None and wanted.head_positions is not None and wanted.attention is not None
    for layer in range(spec.layers):
        assert np.array_equal(view.head_positions(layer), wanted.head_positions(layer))
        assert np.abs(view.keys(layer) - wanted.keys(layer)).max() < 1e-3
        assert np.abs(view.attention(layer) - wanted.attention(layer)).max() < 1e-4


def test_the_cache_stays_where_it_is(tmp_path: Path) -> None:
    spec = TINY_SPECS["llama"]
    engine = make(tmp_path, spec)
    before = [part.ctypes.data for layer in engine.kv.layers for part in layer]
    engine.forward(Batch(IDS[:30]))
    engine.kv.shift(20, 30, 5)
    engine.kv.drop_by_head(
        np.concatenate([head_rows(spec, 20, 9), np.full((spec.layers, spec.kv_heads, 1), 34)], axis=2)
    )
    assert before == [part.ctypes.data for layer in engine.kv.layers for part in layer]


def test_heads_that_end_up_alike_are_ordinary_rows_again(tmp_path: Path) -> None:
    spec = TINY_SPECS["llama"]
    engine = make(tmp_path, spec)
    engine.forward(Batch(IDS[:10]))
    engine.kv.drop_by_head(np.tile([2, 5, 9], (spec.layers, spec.kv_heads, 1)))
    assert engine.kv.view().head_positions is None
    engine.kv.shift(9, 10, 3)
    assert engine.kv.positions.tolist() == [2, 5, 12]


def test_rows_by_head_are_exported_whole_into_an_empty_store(tmp_path: Path) -> None:
    spec = TINY_SPECS["llama"]
    engine = make(tmp_path, spec)
    engine.forward(Batch(IDS[:30]))
    engine.kv.drop_by_head(head_rows(spec, 30, 9))
    with pytest.raises(ValueError, match="shift"):
        engine.kv.shift(0, 30, 1)
    with pytest.raises(ValueError, match="together"):
        engine.kv.export(5)
    blob = engine.kv.export()
    engine.kv.clear()
    engine.forward(Batch(IDS[:1]))
    with pytest.raises(CorruptArtifact):
        engine.kv.restore(blob)
    assert engine.kv.length == 1
    engine.kv.clear()
    engine.kv.restore(blob)
    assert engine.kv.export() == blob


@pytest.mark.parametrize(("name", "leaves"), [("mistral", 0), ("mistral", 4), ("gemma3_text", 4)])
def test_windowed_models_refuse_rows_by_head_by_name(name: str, leaves: int, tmp_path: Path) -> None:
    spec = TINY_SPECS[name]
    engine = make(tmp_path, spec, LoadSpec(context=64, chunk=16, kv_type="f32", tree_leaves=leaves))
    assert engine.capabilities.drop == ("token" if leaves else "none")
    assert engine.capabilities.shift == bool(leaves)
    engine.forward(Batch(IDS[:20]))
    with pytest.raises(PlanError, match=r"by head.*window") as caught:
        engine.kv.drop_by_head(head_rows(spec, 20, 9))
    assert caught.value.clash is not None
    if not leaves:
        with pytest.raises(PlanError, match="window"):
            engine.kv.shift(5, 20, 4)
    assert engine.kv.length == 20


def test_learned_positions_refuse_a_shift_by_name(tmp_path: Path) -> None:
    engine = make(tmp_path, TINY_SPECS["gpt2"])
    assert not engine.capabilities.shift
    assert engine.capabilities.drop == "head"
    engine.forward(Batch(IDS[:20]))
    with pytest.raises(PlanError, match="rotary") as caught:
        engine.kv.shift(5, 20, -2)
    assert caught.value.clash is not None


@pytest.mark.parametrize("name", [n for n in TINY_SPECS if n != "gpt2"])
@pytest.mark.parametrize("context", [32, 64])
def test_shifts_turn_keys_as_each_architecture_does(name: str, context: int, tmp_path: Path) -> None:
    """LongRoPE's factors go by context (32 is where its long ones begin), Gemma 3's bases by layer."""
    spec = TINY_SPECS[name]
    load = LoadSpec(context=context, chunk=16, kv_type="f32", tree_leaves=2)
    engine, ref = make(tmp_path, spec, load), ReferenceEngine(spec, random_weights(spec), load)
    for e in (engine, ref):
        e.forward(Batch(IDS[:20]))
        e.kv.drop(range(4, 12))
        e.kv.shift(12, 20, -8)
        e.kv.shift(11, 12, 100)
        assert e.kv.positions.tolist() == [*range(11), 111]
    view, wanted = engine.kv.view().keys, ref.kv.view().keys
    assert view is not None
    assert wanted is not None
    for layer in range(spec.layers):
        assert np.abs(view(layer) - wanted(layer)).max() < 1e-4
    want = ref.forward(Batch(IDS[20:30], logits="all"))
    assert np.abs(engine.forward(Batch(IDS[20:30], logits="all")) - want).max() < 1e-4 * want.std()
