"""Moving rows to other positions: every type and RoPE that can, every one that cannot by name, and no laziness."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from support.llama_engines import WIDE, artifact, error, ids, load, load_spec, logits, reference
from support.specs import TINY_SPECS
from wattwise_devices.errors import BackendError, PlanError
from wattwise_runtimes.contracts import Batch, ForwardCancelled
from wattwise_runtimes.engines.llamacpp import BACKEND
from wattwise_runtimes.engines.llamacpp.engine import LlamaEngine
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.spec import ModelSpec, RopeSpec

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.llama

# Largest error of logits and of keys, in standard deviations: what the type costs without any move (test_kv.py).
TYPES = {
    "f32": (1e-4, 1e-4), "f16": (0.005, 0.005), "q8_0": (0.06, 0.06), "q5_1": (0.4, 0.4), "q4_0": (0.8, 0.9),
    "iq4_nl": (0.8, 0.9),
}  # fmt: skip
HEAD_32 = dataclasses.replace(TINY_SPECS["llama"], hidden=128, head_dim=32, rope=RopeSpec(dims=32))


def moved(engine: LlamaEngine | ReferenceEngine, tokens: list[int]) -> None:
    """Twenty tokens, a hole at 6, 7, 8 that is closed, and a gap before the last four."""
    engine.forward(Batch(tokens))
    engine.kv.drop([6, 7, 8])
    engine.kv.shift(9, len(tokens), -3)
    engine.kv.shift(len(tokens) - 7, 10**9, 5)


def keys_error(engine: LlamaEngine, ref: ReferenceEngine) -> float:
    """Largest error of any layer's keys, in standard deviations."""
    got, want = engine.kv.view().keys, ref.kv.view().keys
    assert got is not None and want is not None
    return max(error(got(layer), want(layer)) for layer in range(ref.spec.layers))


def without_factor(spec: ModelSpec) -> ModelSpec:
    """LongRoPE, but with magnitudes left alone."""
    assert spec.rope is not None
    return dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, attention_factor=1.0))


@pytest.mark.parametrize("kv_type", TYPES)
def test_every_type_that_can_be_turned_is(kv_type: str, tmp_path: Path) -> None:
    most, most_keys = TYPES[kv_type]
    tokens = ids(20)
    ref, engine = reference(WIDE), load(tmp_path, WIDE, kv_type=kv_type)
    assert engine.capabilities.shift
    for e in (engine, ref):
        moved(e, tokens)
    assert engine.kv.positions.tolist() == ref.kv.positions.tolist() == [*range(13), 18, 19, 20, 21]
    assert keys_error(engine, ref) < most_keys
    assert error(logits(engine, ids(9, seed=3)), logits(ref, ids(9, seed=3))) < most
    assert engine.kv.next_position == 31
    engine.close()


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"])
def test_rows_that_stay_are_not_touched(kv_type: str, tmp_path: Path) -> None:
    """llama.cpp turns and stores all cells anew, those that stay by an angle of 0: that must lose nothing."""
    engine = load(tmp_path, WIDE, kv_type=kv_type)
    engine.forward(Batch(ids(30)))
    before = engine.kv.export(0, 20)
    for by in (5, 3, 7):
        engine.kv.shift(20, 10**6, by)
        assert engine.kv.export(0, 20) == before
        engine.kv.truncate(25)
        engine.forward(Batch(ids(4)))
    engine.close()


@pytest.mark.parametrize("name", ["llama3", "llama-linear", "qwen3", "phi3", "phi4-mini", "mistral"])
def test_every_rope_that_can_be_turned_is(name: str, tmp_path: Path) -> None:
    spec = without_factor(TINY_SPECS[name])
    short = 8 if name == "mistral" else 64
    engine, ref = load(tmp_path, spec, context=short), reference(spec, context=short)
    for e in (engine, ref):
        e.forward(Batch(ids(6)))
        e.kv.drop([2])
        e.kv.shift(3, 6, -1)
    assert keys_error(engine, ref) < 1e-4
    assert error(logits(engine, [9, 8]), logits(ref, [9, 8])) < 1e-3
    engine.close()


@pytest.mark.parametrize(
    ("spec", "kv_type", "word"),
    [
        (WIDE, "bf16", "bf16"), (HEAD_32, "q8_0", "head size 32"), (HEAD_32, "q4_0", "head size 32"),
        (TINY_SPECS["gpt2"], "f32", "learned positions"), (TINY_SPECS["gemma2"], "f32", "sliding"),
        (TINY_SPECS["gemma3_text"], "f16", "sliding"), (TINY_SPECS["phi4-mini"], "f32", "factor of 1.19"),
    ],
    ids=lambda value: value.architecture if isinstance(value, ModelSpec) else value,
)  # fmt: skip
def test_what_llama_cpp_turns_wrongly_or_dies_of_is_refused_by_name(
    spec: ModelSpec, kv_type: str, word: str, tmp_path: Path
) -> None:
    engine = load(tmp_path, spec, kv_type=kv_type)
    assert not engine.capabilities.shift
    engine.forward(Batch(ids(10)))
    for _ in range(2):
        with pytest.raises(PlanError, match=word) as caught:
            engine.kv.shift(5, 10, 3)
        assert caught.value.clash is not None and caught.value.clash[0] == "shift"
    assert engine.kv.positions.tolist() == list(range(10))
    engine.forward(Batch([5]))
    engine.close()


@pytest.mark.parametrize(("setting", "is_off"), [("1", True), (" 2x", True), ("0", False), ("on", False), ("", False)])
def test_llama_cpps_switch_for_rotated_keys_is_seen(
    setting: str, is_off: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", setting)
    engine, ref = load(tmp_path, WIDE, kv_type="q8_0"), reference(WIDE)
    monkeypatch.delenv("LLAMA_ATTN_ROT_DISABLE")  # it counts when the context is made
    assert engine.capabilities.shift is not is_off
    for e in (engine, ref):
        e.forward(Batch(ids(20)))
    assert keys_error(engine, ref) < 0.06, "keys are shown as they are, rotated or not"
    if is_off:
        with pytest.raises(PlanError, match="LLAMA_ATTN_ROT_DISABLE"):
            engine.kv.shift(5, 20, 3)
    else:
        engine.kv.shift(5, 20, 3)
        ref.kv.shift(5, 20, 3)
        assert keys_error(engine, ref) < 0.06
    engine.close()


@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
def test_moved_rows_can_be_saved_at_once(kv_type: str, tmp_path: Path) -> None:
    engine, other = (load(tmp_path, WIDE, kv_type=kv_type) for _ in range(2))
    moved(engine, ids(20))
    rows = engine.kv.export()
    want = logits(engine, ids(5, seed=2))
    engine.kv.truncate(22)
    assert engine.kv.export() == rows, "nothing was left to be done by the next call"
    other.kv.restore(rows)
    assert other.kv.positions.tolist() == engine.kv.positions.tolist()
    assert other.kv.export() == rows
    assert error(logits(other, ids(5, seed=2)), want) < 1e-3
    for e in (engine, other):
        e.close()


def test_a_call_that_is_stopped_after_a_move_turns_nothing_twice(tmp_path: Path) -> None:
    engine, ref = load(tmp_path, WIDE), reference(WIDE)
    for e in (engine, ref):
        moved(e, ids(20))
    engine._seconds_per_row = 1.0  # long enough to be watched
    engine._watched._flag.set()  # as if cancelled at once; cleared again by the watch
    with pytest.raises(ForwardCancelled):
        engine.forward(Batch(ids(9)), lambda: False)
    assert keys_error(engine, ref) < 1e-4
    assert error(logits(engine, ids(9)), logits(ref, ids(9))) < 1e-3
    engine.close()


def test_a_full_cache_can_be_moved(tmp_path: Path) -> None:
    """No cell is free for the token that makes llama.cpp turn the keys."""
    engine, ref = load(tmp_path, WIDE, context=256), reference(WIDE, context=256)
    for e in (engine, ref):
        e.forward(Batch(ids(256)))
        e.kv.shift(100, 256, 7)
    assert keys_error(engine, ref) < 1e-4
    for e in (engine, ref):
        e.kv.drop(range(3, 30))
    assert error(logits(engine, [5, 6, 7]), logits(ref, [5, 6, 7])) < 1e-3
    assert engine.kv.length == 232
    engine.close()


def test_a_move_that_fails_leaves_no_wrong_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(tmp_path, WIDE)
    engine.forward(Batch(ids(20)))
    monkeypatch.setattr(engine.kv, "_compute", lambda batch: -2)
    with pytest.raises(BackendError, match="status -2"):
        engine.kv.shift(5, 20, 3)
    assert engine.kv.length == 0
    assert error(logits(engine, ids(20)), logits(reference(WIDE), ids(20))) < 1e-4
    engine.close()


def test_moves_out_of_reach_or_time_are_refused(tmp_path: Path) -> None:
    engine = load(tmp_path, WIDE, tree_leaves=2)
    engine.kv.shift(0, 5, 3)  # no rows, nothing to do
    engine.forward(Batch(ids(10)))
    for start, stop, by in ((0, 10, -1), (3, 5, 2), (8, 10, 2**31), (5, 10, -1)):
        with pytest.raises(ValueError, match="order"):
            engine.kv.shift(start, stop, by)
    engine.kv.shift(9, 10, 2**31 - 300)
    with pytest.raises(ValueError, match=str(2**31 - 256)):
        engine.forward(Batch(ids(50)))
    engine.kv.truncate(9)
    engine.forward(Batch([1, 2, 3], parents=[-1, 0, 0]))
    with pytest.raises(ValueError, match="tree"):
        engine.kv.shift(0, 5, 3)
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.kv.shift(0, 5, 3)


def test_moved_rows_and_trees_go_together(tmp_path: Path) -> None:
    engine, ref = load(tmp_path, WIDE, tree_leaves=3), reference(WIDE)
    for e in (engine, ref):
        moved(e, ids(20))
    batch = Batch(ids(4, seed=8), parents=[-1, 0, 0, 2], logits="all")
    assert error(engine.forward(batch), ref.forward(batch)) < 1e-3
    for e in (engine, ref):
        e.kv.accept([0, 2, 3])
        e.kv.shift(10, 100, 4)
    assert engine.kv.positions.tolist() == ref.kv.positions.tolist()
    assert error(logits(engine, [4, 5]), logits(ref, [4, 5])) < 1e-3
    engine.close()


@pytest.mark.parametrize("name", TINY_SPECS)
def test_capabilities_are_known_before_loading(name: str, tmp_path: Path) -> None:
    spec = TINY_SPECS[name]
    context = 8 if name == "mistral" else 64
    for options in ({}, {"kv_type": "bf16"}, {"attention_scores": True}, {"tree_leaves": 3}):
        asked = load_spec(context=context, **options)
        made = artifact(tmp_path, spec)
        try:
            known = BACKEND.capabilities(made, asked)
        except PlanError as refusal:
            with pytest.raises(PlanError, match=str(refusal)[:40]):
                BACKEND.load(made, asked)
            continue
        engine = BACKEND.load(made, asked)
        assert engine.capabilities == known
        engine.close()


def test_a_build_that_rotates_otherwise_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattwise_runtimes.engines.llamacpp.backend.read_key_rotation", lambda lines: False)
    with pytest.raises(BackendError, match="q8_0"):
        load(tmp_path, WIDE, kv_type="q8_0")
    load(tmp_path, WIDE, kv_type="f16").close()


def test_positions_may_grow_far(tmp_path: Path) -> None:
    """Turning is linear in the position, also over thousands of positions."""
    engine, ref = load(tmp_path, WIDE), reference(WIDE)
    for e in (engine, ref):
        e.forward(Batch(ids(12)))
        e.kv.shift(4, 12, 5000)
        e.kv.shift(5004, 5012, -4998)
    assert engine.kv.positions.tolist() == [0, 1, 2, 3, *range(6, 14)]
    assert keys_error(engine, ref) < 2e-3
    engine.close()
