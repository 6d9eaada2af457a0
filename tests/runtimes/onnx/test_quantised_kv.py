"""Keys and values in 8 and 4 bits: against a numpy model of the codes, against float32, and what is refused by name."""

from __future__ import annotations

import itertools
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
from wattwise_runtimes.engines.reference import ReferenceEngine, maths
from wattwise_runtimes.spec import ModelSpec
from wattwise_runtimes.text.sources import load_tokenizer

SPEC = TINY_SPECS["llama"]
IDS = [int(i) for i in np.random.default_rng(1).integers(3, SPEC.vocab, 40)]
TREE, PARENTS = [7, 9, 11, 9, 30, 31], [-1, 0, 0, 1, 2, -1]
BITS = {"int8": 8, "int4": 4}


def make(folder: Path, kv_type: str, spec: ModelSpec = SPEC, seed: int = 0, **options: int) -> OnnxEngine:
    path = folder / f"m{seed}"
    if not path.exists():
        write_onnx_folder(path, spec, random_weights(spec, seed))
    engine = BACKEND.load(open_artifact(path), LoadSpec(**{"context": 64, "chunk": 16, "kv_type": kv_type, **options}))
    assert isinstance(engine, OnnxEngine)
    return engine


def scales(engine: OnnxEngine) -> np.ndarray:
    """Of the loaded engine, [layers, keys and values, kv_heads, head_dim]."""
    found = engine.kv.codec.scales  # type: ignore[attr-defined]
    assert found.shape == (SPEC.layers, 2, engine.spec.kv_heads, engine.spec.head_dim)
    assert found.min() > 0
    return found


def rounded(numbers: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """What is left of [kv_heads, rows, head_dim] with a scale per head and channel."""
    most = 2 ** (bits - 1)
    return np.clip(np.round(numbers / scale[:, None]), -most, most - 1) * scale[:, None]


def quantised_reference(engine: OnnxEngine, bits: int, monkeypatch: pytest.MonkeyPatch) -> ReferenceEngine:
    """The numpy reference over the same weights, which rounds every key and value as these scales say."""
    plain, layers, found = maths.attend, itertools.cycle(range(SPEC.layers)), scales(engine)

    def attend(q, k, v, visible, scale, cap):
        of_keys, of_values = found[next(layers)]
        return plain(q, rounded(k, of_keys, bits), rounded(v, of_values, bits), visible, scale, cap)

    monkeypatch.setattr(maths, "attend", attend)
    load = LoadSpec(context=64, chunk=16, kv_type="f32")
    return ReferenceEngine(engine.spec, random_weights(engine.spec), load)


def assert_same_but_for_ties(got: np.ndarray, want: np.ndarray) -> None:
    """A number on the edge between two codes may fall to either side; nearly all logits must not notice."""
    error = np.abs(got - want) / want.std()
    assert np.median(error) < 1e-4
    assert error.max() < 0.1


@pytest.mark.parametrize("kv_type", ["int8", "int4"])
@pytest.mark.parametrize("name", TINY_SPECS)
def test_every_architecture_equals_a_reference_with_rounded_rows(
    name: str, kv_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(tmp_path, kv_type, TINY_SPECS[name])
    ref = quantised_reference(engine, BITS[kv_type], monkeypatch)
    for ids in (IDS[:21], IDS[21:22], IDS[22:]):
        assert_same_but_for_ties(engine.forward(Batch(ids, logits="all")), ref.forward(Batch(ids, logits="all")))


@pytest.mark.parametrize("kv_type", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_with_trees_and_scores_and_windows_at_once(
    name: str, kv_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(tmp_path, kv_type, TINY_SPECS[name], tree_leaves=4, attention_scores=True)
    ref = quantised_reference(engine, BITS[kv_type], monkeypatch)
    for e in (engine, ref):
        e.forward(Batch(IDS[:20]))
        e.kv.drop([3, 4, 9])
    want = ref.forward(Batch(TREE, parents=PARENTS, logits="all"))
    assert_same_but_for_ties(engine.forward(Batch(TREE, parents=PARENTS, logits="all")), want)
    for e in (engine, ref):
        e.kv.accept([0, 2, 4])
    assert_same_but_for_ties(
        engine.forward(Batch(IDS[20:30], logits="all")), ref.forward(Batch(IDS[20:30], logits="all"))
    )
    got, wanted = engine.kv.view().attention, ref.kv.view().attention
    assert got is not None
    assert wanted is not None
    for layer in range(SPEC.layers):
        error = np.abs(got(layer) - wanted(layer))
        assert np.median(error) < 1e-5
        assert error.max() < 0.02


@pytest.mark.parametrize("kv_type", ["int8", "int4"])
def test_stored_codes_and_keys_are_what_the_scales_say(kv_type: str, tmp_path: Path) -> None:
    engine = make(tmp_path, kv_type)
    ref = ReferenceEngine(SPEC, random_weights(SPEC), LoadSpec(context=64, kv_type="f32"))
    for e in (engine, ref):
        e.forward(Batch(IDS))
    exact, found = ref.kv.view().keys, engine.kv.view().keys  # in the first layer nothing has been rounded before
    assert exact is not None
    assert found is not None
    step = scales(engine)[0, 0][:, None]
    want = rounded(exact(0), scales(engine)[0, 0], BITS[kv_type])
    assert (np.abs(found(0) - want) < 1e-3 * step).mean() > 0.999
    assert np.abs(found(0) - want).max() < 1.001 * step.max()
    codes = engine.kv.layers[0][0][0, :, : len(IDS)]
    if kv_type == "int4":
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(SPEC.kv_heads, len(IDS), SPEC.head_dim)
        codes = codes.astype(np.int32) - 8
    assert np.allclose(codes * step, found(0))


@pytest.mark.parametrize(("kv_type", "bits"), [("f32", 32), ("int8", 8), ("int4", 4)])
def test_bytes_are_as_predicted(kv_type: str, bits: int, tmp_path: Path) -> None:
    engine = make(tmp_path, kv_type)
    predicted = BACKEND.estimate(open_artifact(tmp_path / "m0"), LoadSpec(context=64, chunk=16, kv_type=kv_type))
    assert engine.kv.nbytes == SPEC.kv_row_elements() * 64 * bits // 8 == predicted.kv == engine.nbytes().kv


@pytest.mark.parametrize(("kv_type", "most", "most_rms"), [("int8", 0.1, 0.02), ("int4", 1.2, 0.2)])
def test_error_against_float32_on_random_models(kv_type: str, most: float, most_rms: float, tmp_path: Path) -> None:
    engine = make(tmp_path, kv_type)
    want = ReferenceEngine(SPEC, random_weights(SPEC), LoadSpec(context=64, kv_type="f32")).forward(
        Batch(IDS, logits="all")
    )
    error = np.abs(engine.forward(Batch(IDS, logits="all")) - want) / want.std()
    assert error.max() < most  # measured: int8 0.05, int4 0.5
    assert np.sqrt(np.mean(error**2)) < most_rms  # measured: int8 0.008, int4 0.09
    assert error.max() > 0, "it is not float32 in disguise"


@pytest.mark.parametrize("kv_type", ["int8", "int4"])
def test_a_shift_costs_little_more_than_a_code_has_already_cost(kv_type: str, tmp_path: Path) -> None:
    """Turned, the error of a pair reaches 0.71 steps, and rounding anew adds half a step."""
    engine, moved = make(tmp_path, kv_type), [*range(10), *range(17, 37)]
    ref = ReferenceEngine(SPEC, random_weights(SPEC), LoadSpec(context=64, kv_type="f32"))
    for e in (engine, ref):
        e.forward(Batch(IDS[:30]))
        e.kv.shift(10, 30, 7)
        assert e.kv.positions.tolist() == moved
    exact, found = ref.kv.view().keys, engine.kv.view().keys
    assert exact is not None
    assert found is not None
    steps = np.abs(found(0) - exact(0)) / scales(engine)[0, 0][:, None]
    inside = np.abs(exact(0)) < (2 ** (BITS[kv_type] - 1) - 1) * scales(engine)[0, 0][:, None]
    assert steps[:, :10][inside[:, :10]].max() < 0.51
    assert inside.mean() > 0.95  # the others are clipped
    assert np.quantile(steps[:, 10:][inside[:, 10:]], 0.98) < 1.21
    assert np.sqrt(np.mean(steps[:, 10:][inside[:, 10:]] ** 2)) < 0.5  # two roundings; one has 0.29


def test_a_shift_by_nothing_changes_no_code(tmp_path: Path) -> None:
    for kv_type in BITS:
        engine = make(tmp_path, kv_type)
        engine.forward(Batch(IDS))
        before = engine.kv.export()
        engine.kv.shift(5, 30, 0)
        assert engine.kv.export() == before


@pytest.mark.parametrize("kv_type", ["int8", "int4"])
def test_rows_of_other_scales_or_types_are_refused(kv_type: str, tmp_path: Path) -> None:
    engine, other = make(tmp_path, kv_type), make(tmp_path, kv_type, seed=1)
    engine.forward(Batch(IDS))
    blob = engine.kv.export()
    for stranger in (other, make(tmp_path, "f32"), make(tmp_path, "int4" if kv_type == "int8" else "int8")):
        with pytest.raises(CorruptArtifact, match="kv_type"):
            stranger.kv.restore(blob)
        assert stranger.kv.length == 0
    twin = make(tmp_path, kv_type)
    twin.kv.restore(blob)
    assert twin.kv.export() == blob
    assert np.array_equal(twin.forward(Batch([5])), engine.forward(Batch([5])))


@pytest.mark.parametrize(
    ("asked", "named"),
    [({"kv_type": "int8"}, "kv type int8"), ({"kv_type": "int4"}, "kv type int4"),
     ({"attention_scores": True}, "attention_scores"), ({"tree_leaves": 2}, "tree_leaves")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["shared", "growing"])
def test_folders_of_others_refuse_by_name(kind: str, asked: dict[str, object], named: str, tmp_path: Path) -> None:
    if kind == "growing":
        folder = DATA / "models" / "random-gpt2-onnx-genai"
        if not folder.is_dir():
            pytest.skip(f"no shared data at {DATA}")
    else:  # without our own record it is a graph that anybody may have written
        folder = write_onnx_folder(tmp_path / "m", SPEC, random_weights(SPEC))
        (folder / "wattwise.json").unlink()
    artifact = open_artifact(folder)
    load = LoadSpec(**{"context": 64, "chunk": 16, "kv_type": "f32", **asked})  # type: ignore[arg-type]
    for call in (BACKEND.load, BACKEND.estimate, BACKEND.capabilities):
        with pytest.raises(PlanError, match=named) as caught:
            call(artifact, load)
        assert caught.value.clash == (named, "foreign ONNX folder")


def test_float32_stays_the_first_type() -> None:
    capability = BACKEND.probe()
    assert capability is not None
    assert capability.kv_types == ("f32", "int8", "int4")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    top = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return top - np.log(np.exp(top).sum(axis=1, keepdims=True))


@needs_data
@pytest.mark.parametrize(("kv_type", "most", "agree"), [("int8", 0.004, 0.95), ("int4", 0.35, 0.7)])
def test_error_against_float32_on_a_real_model(kv_type: str, most: float, agree: float, tmp_path: Path) -> None:
    from wattwise_convert.onnx import export
    from wattwise_convert.sources import open_checkpoint

    folder = export(open_checkpoint(DATA / "models" / "stories3M-hf"), tmp_path / "m", quant="fp32").path
    tokenizer = load_tokenizer(folder)
    texts = (DATA / "text" / "tinystories_sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")[10:14]
    engines = [BACKEND.load(open_artifact(folder), LoadSpec(context=256, kv_type=t)) for t in ("f32", kv_type)]
    divergence, same = [], []
    for text in texts:
        ids = tokenizer.encode(text.strip(), bos=True)[:256]
        for engine in engines:
            engine.kv.clear()
        exact, found = (log_softmax(engine.forward(Batch(ids, logits="all"))) for engine in engines)
        divergence.append((np.exp(exact) * (exact - found)).sum(axis=1))
        same.append(exact.argmax(axis=1) == found.argmax(axis=1))
    assert 0 < np.concatenate(divergence).mean() < most  # nats per token; measured: int8 0.0013, int4 0.17
    assert np.concatenate(same).mean() > agree  # measured: int8 0.98, int4 0.81
