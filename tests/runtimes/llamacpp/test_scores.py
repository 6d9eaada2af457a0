"""Attention scores: equal to the reference's wherever rows lie in memory, and gone when rows change."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from support.data import DATA, needs_data
from support.gguf_files import write_tiny_gguf
from support.llama_engines import WIDE, artifact, error, ids, load, load_spec, logits, reference
from support.specs import TINY_SPECS, random_weights
from wattwise_devices.errors import BackendError, PlanError
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Artifact, Batch, ForwardCancelled, LoadSpec
from wattwise_runtimes.engines.llamacpp import BACKEND
from wattwise_runtimes.engines.llamacpp import engine as engine_module
from wattwise_runtimes.engines.llamacpp import ggml as ggml_module
from wattwise_runtimes.engines.llamacpp.engine import LlamaEngine
from wattwise_runtimes.engines.llamacpp.tap import Tap
from wattwise_runtimes.engines.reference import BACKEND as REFERENCE
from wattwise_runtimes.engines.reference import ReferenceEngine

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.llama

SPEC = TINY_SPECS["llama"]
TYPES = {"f32": 1e-5, "f16": 2e-3, "bf16": 2e-2}  # largest error of a weight


def scoring(folder: Path, spec: object = SPEC, **options: object) -> LlamaEngine:
    """An engine that shows its attention."""
    return load(folder, spec, attention_scores=True, **options)  # type: ignore[arg-type]


def attention(engine: LlamaEngine | ReferenceEngine) -> np.ndarray:
    """All layers' weights, float32 [layers, heads, queries, rows]."""
    view = engine.kv.view()
    assert view.attention is not None
    return np.stack([view.attention(layer) for layer in range(view.layers)])


def assert_equal_attention(engine: LlamaEngine, ref: ReferenceEngine, most: float = 1e-5) -> None:
    got, want = attention(engine), attention(ref)
    assert got.dtype == np.float32
    assert got.shape == want.shape
    assert np.abs(got - want).max() < most


@pytest.mark.parametrize("kv_type", TYPES)
@pytest.mark.parametrize("name", ["llama", "wide", "qwen3", "phi4-mini", "gpt2"])
def test_weights_equal_the_reference(name: str, kv_type: str, tmp_path: Path) -> None:
    spec = WIDE if name == "wide" else TINY_SPECS[name]
    engine, ref = scoring(tmp_path, spec, kv_type=kv_type), reference(spec)
    assert engine.capabilities.attention
    assert engine.where()["flash_attention"] == "disabled"
    assert engine.kv.length == 0, "the trial at loading has left nothing"
    most = max(TYPES[kv_type], 1e-3 if name == "gpt2" else 0)
    for tokens in (ids(33), ids(16, seed=2), ids(1), ids(4, seed=3)):  # the last chunk of 33 is a single token
        for e in (engine, ref):
            e.forward(Batch(tokens))
        assert_equal_attention(engine, ref, most)
    engine.close()


def test_rows_are_saved_and_restored_with_values_transposed(tmp_path: Path) -> None:
    engine, plain = scoring(tmp_path, kv_type="f16"), load(tmp_path, SPEC, kv_type="f16")
    engine.forward(Batch(ids(20)))
    engine.kv.drop([3, 4])
    rows = engine.kv.export()
    want = logits(engine, [5, 6])
    engine.kv.clear()
    engine.kv.restore(rows)
    assert engine.kv.export() == rows
    assert error(logits(engine, [5, 6]), want) < 1e-2
    assert (
        BACKEND.estimate(artifact(tmp_path, SPEC), load_spec(kv_type="f16", attention_scores=True)).kv
        == plain.kv.nbytes
    )
    for e in (engine, plain):
        e.close()


def test_a_chunk_of_several_native_calls_is_shown_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows of logits are fetched in smaller calls; the chunk that a caller knows stays whole."""
    monkeypatch.setattr(engine_module.params, "output_rows", lambda spec, load: 3)
    engine, ref = scoring(tmp_path, context=400), reference(SPEC, context=400)
    for e in (engine, ref):
        e.forward(Batch(ids(235)))
    batch = Batch(ids(29, seed=4), logits="all")
    assert error(engine.forward(batch), ref.forward(batch)) < 1e-3
    assert_equal_attention(engine, ref)
    scores = engine.kv._scores
    assert scores is not None
    assert [piece.shape[2:] for piece in scores.pieces] == [(3, 256), (3, 512), (3, 512), (3, 512), (1, 512)]
    batch = Batch(ids(29, seed=5), logits=[0, 1, 2, 3, 20])
    assert error(engine.forward(batch), ref.forward(batch)) < 1e-3
    assert_equal_attention(engine, ref)
    engine.close()


def test_only_the_last_chunk_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scoring(tmp_path, tree_leaves=2)
    copied: list[int] = []
    monkeypatch.setattr(Tap, "_copy", lambda self, tensor, copy=Tap._copy: (copied.append(1), copy(self, tensor))[1])
    engine.forward(Batch(ids(50)))
    assert len(copied) == SPEC.layers
    engine.forward(Batch([1, 2, 3], parents=[-1, 0, 0]))
    engine.kv.accept([0])
    engine.kv.shift(20, 51, 7)
    assert len(copied) == SPEC.layers, "nobody can ask for a tree's, or for the token that makes keys turn"
    engine.close()


@pytest.mark.parametrize("seed", range(6))
def test_weights_are_by_position_whatever_cells_rows_lie_in(seed: int, tmp_path: Path) -> None:
    """Random appends, rewinds, evictions, trees, moved positions and rows; holes are filled again in any order."""
    rng = np.random.default_rng(seed)
    ref = reference(SPEC, tree_leaves=4)
    engine, spare = (scoring(tmp_path, tree_leaves=4) for _ in range(2))

    def both(act: str, *arguments: object) -> None:
        for kv in (engine.kv, ref.kv):
            getattr(kv, act)(*arguments)
            assert kv.view().attention is None

    scrambled = 0
    for step in range(70):
        held = ref.kv.positions
        room = ref.kv.capacity_tokens - len(held)
        choice = rng.choice(
            ["append", "truncate", "drop", "tree", "shift", "move"], p=[0.45, 0.08, 0.25, 0.08, 0.07, 0.07]
        )
        if choice == "append" and room:
            batch = Batch(ids(int(rng.integers(1, min(room, 24) + 1)), seed=1000 * seed + step), logits="all")
            assert error(engine.forward(batch), ref.forward(batch)) < 1e-3
            assert_equal_attention(engine, ref)
            cells = engine.kv._score_cells
            assert cells is not None
            scrambled += bool(np.any(np.diff(cells) < 0))
        elif choice == "truncate" and len(held) > 2:
            both("truncate", int(rng.integers(1, held[-1] + 3)))
        elif choice == "drop" and len(held) > 3:
            both("drop", rng.choice(held[:-1], int(rng.integers(1, len(held) // 2 + 1)), replace=False).tolist())
        elif choice == "tree" and room > 6:
            for e in (engine, ref):
                e.forward(Batch(ids(4, seed=step), parents=[-1, 0, 0, 2]))
            both("accept", [[], [0], [0, 1], [0, 2, 3]][int(rng.integers(4))])
        elif choice == "shift" and len(held) > 3:
            both("shift", int(held[len(held) // 2]), 10**6, int(rng.integers(1, 5)))
        elif choice == "move" and len(held):
            cut = int(held[rng.integers(len(held))])
            spare.kv.clear()
            for part in (engine.kv.export(0, cut), engine.kv.export(cut)):
                spare.kv.restore(part)
            engine, spare = spare, engine
            assert engine.kv.view().attention is None
        assert engine.kv.positions.tolist() == ref.kv.positions.tolist()
    assert scrambled > 5, "the test's own operations must scramble the cells"
    engine.close()
    spare.close()


def test_rows_whose_weights_vanish_are_still_rows(tmp_path: Path) -> None:
    """With huge queries nearly all weights are exactly 0; which cells are in use must not be read from them."""
    weights = random_weights(SPEC)
    for name in weights:
        if name.endswith("attn_q.weight"):
            weights[name] = 200 * weights[name]
    path = write_tiny_gguf(tmp_path / "sharp.gguf", SPEC, weights)
    made = Artifact(path=path, format="gguf", spec=SPEC, weights_bytes=0)
    engine, ref = BACKEND.load(made, load_spec(attention_scores=True)), ReferenceEngine(SPEC, weights, load_spec())
    for e in (engine, ref):
        e.forward(Batch(ids(30)))
        e.kv.drop([3, 4, 5, 20])
        e.forward(Batch(ids(6, seed=2)))
    assert np.any(np.all(attention(engine) == 0, axis=(0, 1, 2))), "the test must make whole rows vanish"
    assert_equal_attention(engine, ref, 1e-3)
    engine.close()


def test_an_old_view_does_not_answer_with_new_rows(tmp_path: Path) -> None:
    engine = scoring(tmp_path)
    engine.forward(Batch(ids(20)))
    old = engine.kv.view().attention
    assert old is not None and old(0).shape == (4, 4, 20)
    engine.forward(Batch([5]))
    with pytest.raises(ValueError, match="changed"):
        old(0)
    assert attention(engine).shape == (3, 4, 1, 21)
    late = engine.kv.view().attention
    assert late is not None
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        late(0)


@pytest.mark.parametrize("kv_type", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"])
def test_quantised_values_are_refused_by_name(kv_type: str, tmp_path: Path) -> None:
    made, asked = artifact(tmp_path, WIDE), load_spec(kv_type=kv_type, attention_scores=True)
    for use in (BACKEND.load, BACKEND.estimate, BACKEND.capabilities):
        with pytest.raises(PlanError, match=f"{kv_type}.*f16") as caught:
            use(made, asked)
        assert caught.value.clash == ("attention_scores", f"kv_type {kv_type} on the llamacpp engine")


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_sliding_windows_are_refused_by_name(name: str, tmp_path: Path) -> None:
    made = artifact(tmp_path, TINY_SPECS[name])
    for use in (BACKEND.load, BACKEND.estimate, BACKEND.capabilities):
        with pytest.raises(PlanError, match=r"sliding-window.*onnx"):
            use(made, load_spec(attention_scores=True))


def test_more_than_the_machine_has_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="smaller chunk") as caught:
        scoring(tmp_path, context=2**20, chunk=2**20)
    assert caught.value.clash == ("attention_scores", f"chunk {2**20}")


def test_without_asking_there_are_none(tmp_path: Path) -> None:
    engine = load(tmp_path, SPEC)
    assert not engine.capabilities.attention
    engine.forward(Batch(ids(5)))
    assert engine.kv.view().attention is None
    engine.close()


def test_a_build_with_another_layout_of_tensors_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, wrong in (("_NAME_AT", 264), ("_SOURCES_AT", 144), ("_DATA_AT", 240)):
        with monkeypatch.context() as patch:
            patch.setattr(ggml_module, name, wrong)
            with pytest.raises(PlanError, match="laid out") as caught:
                scoring(tmp_path)
            assert caught.value.clash is not None and "attention_scores" in caught.value.clash
    scoring(tmp_path).close()


def test_an_error_in_the_callback_is_raised_and_leaves_a_usable_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, ref = scoring(tmp_path), reference(SPEC)
    for e in (engine, ref):
        e.forward(Batch(ids(20)))

    def fail(*_: object) -> None:
        raise ZeroDivisionError("of the test")

    for place in ("copy", "name"):
        with monkeypatch.context() as patch:
            assert engine._tap is not None
            patch.setattr(engine._tap._tensors, place, fail)
            with pytest.raises(BackendError, match="of the test"):
                engine.forward(Batch(ids(5)))
        assert engine.kv.length == 20
        assert engine.kv.view().attention is None
    assert error(logits(engine, ids(5)), logits(ref, ids(5))) < 1e-3
    assert_equal_attention(engine, ref)
    engine.close()


def test_a_layer_that_is_missing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scoring(tmp_path)
    assert engine._tap is not None
    names = engine._tap._tensors.name
    monkeypatch.setattr(engine._tap._tensors, "name", lambda t: names(t).replace(b"kq_soft_max-1", b"other"))
    with pytest.raises(BackendError, match="2 of 3 layers"):
        engine.forward(Batch(ids(5)))
    assert engine.kv.length == 0
    engine.close()


def test_cells_that_do_not_fit_the_rows_are_noticed(tmp_path: Path) -> None:
    engine = scoring(tmp_path)
    engine.forward(Batch(ids(9)))
    scores = engine.kv._scores
    assert scores is not None
    engine.kv.show(dataclasses.replace(scores, used=scores.used[:-1]))
    seen = engine.kv.view().attention
    assert seen is not None
    with pytest.raises(BackendError, match="9 rows in 8"):
        seen(0)
    engine.close()


def test_reading_positions_says_nothing_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp complains that the buffer ends after the positions; that is on purpose."""
    engine = scoring(tmp_path)
    with caplog.at_level(logging.DEBUG, logger="wattwise.llamacpp"):
        engine.forward(Batch(ids(9)))
        caplog.clear()
        attention(engine)
    assert not caplog.records
    engine.close()


def test_cancelling_leaves_what_belongs_to_the_rows_held(tmp_path: Path) -> None:
    engine, ref = scoring(tmp_path), reference(SPEC)
    engine.forward(Batch(ids(20)))
    calls: list[int] = []

    def cancelled() -> bool:
        calls.append(1)
        return engine.kv.length >= 36

    with pytest.raises(ForwardCancelled):
        engine.forward(Batch(ids(40, seed=2)), cancelled)
    assert engine.kv.length == 36
    assert engine.kv.view().attention is None, "the last chunk was never computed"
    for e in (engine, ref):
        e.kv.clear()
        e.forward(Batch(ids(7)))
    assert_equal_attention(engine, ref)
    engine.close()


def test_ctrl_c_is_not_lost_in_the_callback(tmp_path: Path) -> None:
    spec = dataclasses.replace(WIDE, layers=6, hidden=512, heads=8, kv_heads=4, ffn=2048)
    made = artifact(tmp_path, spec)
    engine = BACKEND.load(made, load_spec(context=1024, chunk=512, kv_type="f16", attention_scores=True))
    started = time.perf_counter()
    engine.forward(Batch(ids(512)))
    whole = time.perf_counter() - started
    engine.kv.clear()
    for cancelled in (None, lambda: False):
        timer = threading.Timer(0.2 * whole, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            engine.forward(Batch(ids(512)), cancelled)
        timer.join()
        assert engine.kv.length == 0
        engine.forward(Batch(ids(5)))
        assert attention(engine).shape == (6, 8, 5, 5)
        engine.kv.clear()
    engine.close()


@needs_data
@pytest.mark.data
@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_weights_of_a_real_model_equal_the_reference(kv_type: str, tmp_path: Path) -> None:
    from wattwise_convert.api import convert

    path = tmp_path / "model.gguf"
    convert(DATA / "models" / "stories260K-hf", path, quant="f32")
    made = open_artifact(path)
    asked = LoadSpec(context=128, chunk=32, kv_type=kv_type, attention_scores=True)
    engine, ref = BACKEND.load(made, asked), REFERENCE.load(made, dataclasses.replace(asked, kv_type="f32"))
    tokens = ids(100, vocab=made.spec.vocab)
    for e in (engine, ref):
        e.forward(Batch(tokens[:70]))
    assert_equal_attention(engine, ref, 1e-4 if kv_type == "f32" else 2e-2)
    for e in (engine, ref):
        e.kv.drop(range(4, 40))
        e.kv.shift(40, 70, -36)
        e.forward(Batch(tokens[70:], logits="all"))
    assert_equal_attention(engine, ref, 1e-4 if kv_type == "f32" else 2e-2)
    engine.close()
