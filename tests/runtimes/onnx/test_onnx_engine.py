"""What the ONNX engine does beyond the conformance test: in-place caches, windows, buffers, memory, cancellation."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from support.onnx_folders import write_onnx_folder
from support.specs import TINY_SPECS, random_weights
from wattwise_devices.errors import BackendError, ContextOverflow, CorruptArtifact, LoadError, PlanError
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, ForwardCancelled, LoadSpec
from wattwise_runtimes.engines.onnx import BACKEND
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.spec import ModelSpec

SPEC = TINY_SPECS["llama"]
IDS = [int(i) for i in np.random.default_rng(1).integers(3, SPEC.vocab, 40)]
TREE, PARENTS = [7, 9, 11, 9, 30, 31], [-1, 0, 0, 1, 2, -1]


def make(folder: Path, spec: ModelSpec = SPEC, *, load: LoadSpec | None = None, **options):
    path = write_onnx_folder(folder / "m", spec, random_weights(spec), **options)
    return BACKEND.load(open_artifact(path), load or LoadSpec(context=64, chunk=16, kv_type="f32"))


def reference(spec: ModelSpec, load: LoadSpec | None = None) -> ReferenceEngine:
    load = load or LoadSpec(context=64, chunk=16, kv_type="f32")
    return ReferenceEngine(spec, random_weights(spec), load)


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(got - want).max() < 1e-4 * want.std()


def test_the_cache_is_written_in_place(tmp_path: Path) -> None:
    engine = make(tmp_path)
    before = [part.ctypes.data for layer in engine.kv.layers for part in layer]
    engine.forward(Batch(IDS[:10]))
    assert before == [part.ctypes.data for layer in engine.kv.layers for part in layer]
    for layer in engine.kv.layers:
        for part in layer:
            assert part.ctypes.data % 64 == 0
            assert np.abs(part[0, :, :10]).min(axis=-1).max() > 0  # rows 0..9 written
            assert not part[0, :, 10:].any()  # and no other


def test_decode_allocates_nothing_of_its_own(tmp_path: Path) -> None:
    engine = make(tmp_path)
    engine.forward(Batch(IDS[:10]))
    first = engine.forward(Batch([5]))
    address = first.ctypes.data
    assert all(engine.forward(Batch([i])).ctypes.data == address for i in (6, 7, 8))


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text"])
def test_trees_and_holes_under_sliding_windows(name: str, tmp_path: Path) -> None:
    spec = TINY_SPECS[name]
    load = LoadSpec(context=64, chunk=16, kv_type="f32", tree_leaves=4)
    engine, ref = make(tmp_path, spec, load=load), reference(spec)
    assert engine.capabilities.drop == "token"
    for e in (engine, ref):
        e.forward(Batch(IDS[:30]))
        e.kv.drop([3, 4, 5, 22, 24, 25])
    for path in ([0, 1, 3], [5], [0, 2, 4]):
        want = ref.forward(Batch(TREE, parents=PARENTS, logits="all"))
        assert_close(engine.forward(Batch(TREE, parents=PARENTS, logits="all")), want)
        for e in (engine, ref):
            e.kv.accept(path)
    assert_close(engine.forward(Batch(IDS[30:], logits="all")), ref.forward(Batch(IDS[30:], logits="all")))


def test_without_a_bias_a_windowed_model_does_not_pretend_to_drop(tmp_path: Path) -> None:
    engine = make(tmp_path, TINY_SPECS["mistral"])
    assert engine.capabilities.drop == "none"
    engine.forward(Batch(IDS))
    with pytest.raises(PlanError, match="tree_leaves"):
        engine.kv.drop([4])
    assert engine.kv.length == 40


def test_a_tree_larger_than_a_chunk_is_refused(tmp_path: Path) -> None:
    engine = make(tmp_path, load=LoadSpec(context=64, chunk=4, kv_type="f32", tree_leaves=2))
    assert engine.capabilities.tree_tokens == 4
    with pytest.raises(PlanError, match="tree of 6"):
        engine.forward(Batch(TREE, parents=PARENTS))
    assert engine.kv.length == 0


@pytest.mark.parametrize("path", [[0, 3], [1], [2, 1], [9], [0, 1, 2]])
def test_accept_refuses_what_is_no_path(path: list[int], tmp_path: Path) -> None:
    engine = make(tmp_path, load=LoadSpec(context=64, chunk=16, kv_type="f32", tree_leaves=4))
    engine.forward(Batch(IDS[:5]))
    engine.forward(Batch(TREE, parents=PARENTS))
    with pytest.raises(ValueError, match="path"):
        engine.kv.accept(path)
    engine.kv.accept([0, 1])
    assert engine.kv.length == 7


def test_positions_beyond_the_context_stay_right_with_rope(tmp_path: Path) -> None:
    engine, ref = make(tmp_path), reference(SPEC)
    for start in range(0, 600, 30):
        ids = np.random.default_rng(start).integers(3, SPEC.vocab, 30)
        for e in (engine, ref):
            logits = e.forward(Batch(ids)).copy()
            e.kv.drop(e.kv.positions[2:-8])
            if e is engine:
                got = logits
        assert_close(got, logits)
    assert engine.kv.next_position == 600 > SPEC.context


def test_learned_positions_end_with_their_table(tmp_path: Path) -> None:
    spec = dataclasses.replace(TINY_SPECS["gpt2"], context=32)
    engine = make(tmp_path, spec)
    engine.forward(Batch(IDS[:32]))
    with pytest.raises(ContextOverflow, match="32"):
        engine.forward(Batch([5]))


def test_cancelling_within_a_chunk(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, hidden=256, ffn=1024, layers=8, vocab=512)
    load = LoadSpec(context=2048, chunk=2048, kv_type="f32")
    engine = make(tmp_path, spec, load=load)
    ids = np.random.default_rng(0).integers(3, spec.vocab, 2000)
    start = time.perf_counter()
    engine.forward(Batch(ids))
    whole_s = time.perf_counter() - start
    engine.kv.clear()
    flag = threading.Event()
    threading.Timer(whole_s / 10, flag.set).start()
    start = time.perf_counter()
    with pytest.raises(ForwardCancelled) as caught:
        engine.forward(Batch(ids), flag.is_set)
    assert caught.value.rows_done == engine.kv.length == 0
    assert time.perf_counter() - start < 0.8 * whole_s
    assert_close(engine.forward(Batch(ids[:50])), engine_without_history(tmp_path / "twin", spec, load, ids[:50]))


def engine_without_history(folder: Path, spec: ModelSpec, load: LoadSpec, ids: np.ndarray) -> np.ndarray:
    folder.mkdir()
    return make(folder, spec, load=load).forward(Batch(ids))


@pytest.mark.parametrize(
    ("load", "named"),
    [(LoadSpec(context=64, kv_type="q8_0"), "q8_0"), (LoadSpec(context=64, kv_type="f16"), "f16")],
)  # fmt: skip
def test_requests_that_cannot_be_met_are_refused_before_loading(load: LoadSpec, named: str, tmp_path: Path) -> None:
    artifact = open_artifact(write_onnx_folder(tmp_path / "m", SPEC, random_weights(SPEC)))
    for call in (BACKEND.load, BACKEND.estimate, BACKEND.capabilities):
        with pytest.raises(PlanError, match=named) as caught:
            call(artifact, load)
        assert caught.value.clash is not None


def test_loading_can_be_stopped(tmp_path: Path) -> None:
    artifact = open_artifact(write_onnx_folder(tmp_path / "m", SPEC, random_weights(SPEC)))
    with pytest.raises(LoadError, match="stopped"):
        BACKEND.load(artifact, LoadSpec(context=64, kv_type="f32"), lambda share: False)


def test_export_refuses_holes_where_positions_are_row_numbers(tmp_path: Path) -> None:
    whole = make(tmp_path, TINY_SPECS["mistral"], load=LoadSpec(context=64, chunk=16, kv_type="f32", tree_leaves=2))
    whole.forward(Batch(IDS))
    whole.kv.drop([3])
    other = BACKEND.load(open_artifact(tmp_path / "m"), LoadSpec(context=64, kv_type="f32"))
    with pytest.raises(CorruptArtifact, match="positions"):
        other.kv.restore(whole.kv.export())
    assert other.kv.length == 0


def test_damage_after_the_check_is_a_typed_error(tmp_path: Path) -> None:
    folder = write_onnx_folder(tmp_path / "m", SPEC, random_weights(SPEC))
    artifact = open_artifact(folder)
    data = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(data[:5000])
    with pytest.raises(CorruptArtifact):
        BACKEND.load(artifact, LoadSpec(context=64, kv_type="f32"))


@pytest.mark.parametrize(("key", "value"), [("layers", 4), ("vocab", 300), ("kv_heads", 4), ("head_dim", 32)])
def test_a_spec_that_contradicts_the_graph_is_refused(key: str, value: int, tmp_path: Path) -> None:
    folder = write_onnx_folder(tmp_path / "m", SPEC, random_weights(SPEC))
    record = json.loads((folder / "wattwise.json").read_text())
    record["spec"][key] = value
    (folder / "wattwise.json").write_text(json.dumps(record))
    with pytest.raises(CorruptArtifact):
        BACKEND.load(open_artifact(folder), LoadSpec(context=64, kv_type="f32"))


def test_where_names_provider_and_library_and_needs_an_open_engine(tmp_path: Path) -> None:
    engine = make(tmp_path)
    where = engine.where()
    assert where["providers"] == ["CPUExecutionProvider"]
    assert where["library"].startswith("onnxruntime ")
    engine.close()
    with pytest.raises(BackendError):
        engine.where()


def test_importing_the_engine_loads_nothing_heavy() -> None:
    code = (
        "import sys, wattwise_runtimes.engines.onnx as o; o.BACKEND.probe();"
        "print([m for m in ('onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


_MEASURE = """
import json, sys
import numpy as np
from wattwise_devices.process_memory import reset_peak, resident_memory
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.onnx import BACKEND
BACKEND.warm_up()
artifact = open_artifact(sys.argv[1])
load = LoadSpec(context=512, **json.loads(sys.argv[2]))
predicted = BACKEND.estimate(artifact, load).total
before = resident_memory().resident_bytes
reset_peak()
engine = BACKEND.load(artifact, load)
engine.forward(Batch(np.random.default_rng(0).integers(3, artifact.spec.vocab, 511)))
engine.forward(Batch([5]))
print(json.dumps([predicted, resident_memory().peak_bytes - before, before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("quant", "load"),
    [
        ("fp32", {"chunk": 128}),
        ("fp16", {"chunk": 256}),
        ("int8", {"chunk": 512}),
        ("int4", {"chunk": 64}),
        ("int4", {"chunk": 128, "tree_leaves": 2}),
        ("int4", {"chunk": 128, "attention_scores": True}),
        ("int4", {"chunk": 128, "kv_type": "int8"}),
        ("int4", {"chunk": 128, "kv_type": "int4", "attention_scores": True, "tree_leaves": 2}),
    ],
    ids=str,
)
def test_predicted_memory_is_what_it_takes(quant: str, load: dict[str, object], tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, hidden=768, ffn=2048, layers=6, vocab=16000, heads=12, kv_heads=6, head_dim=64)
    assert spec.rope is not None
    spec = dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, dims=64), context=512)
    folder = write_onnx_folder(tmp_path / "m", spec, random_weights(spec), quant=quant)
    command = [sys.executable, "-c", _MEASURE, str(folder), json.dumps({"kv_type": "f32", **load})]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    predicted, measured, runtime = json.loads(done.stdout)
    assert (predicted + runtime) / (measured + runtime) == pytest.approx(1, abs=0.05)
