"""GGUF files from canonical checkpoints: read back, run, and compared with an independent writer."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.chat_model import byte_tokenizer
from support.checkpoints import checkpoint_of, tiny_checkpoint
from support.gguf_files import write_tiny_gguf
from support.specs import TINY_SPECS, random_weights
from wattwise_convert import gguf
from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_convert.gguf.types import NATIVE
from wattwise_convert.sources import open_checkpoint
from wattwise_devices.errors import ConvertError, UnsupportedArchitecture
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.formats.gguf import read_gguf
from wattwise_runtimes.formats.gguf_spec import quant_name
from wattwise_runtimes.text.sources import load_tokenizer

IDS = np.random.default_rng(3).integers(0, 256, 40)
GELU_TABLE = {"gemma2": 2e-3, "gemma3_text": 2e-3}  # ggml looks GELU up in a table of f16 values


def logits(checkpoint: Checkpoint, ids: np.ndarray = IDS) -> np.ndarray:
    weights = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
    load = LoadSpec(context=64, kv_type="f32")
    return ReferenceEngine(checkpoint.spec, weights, load).forward(Batch(ids, logits="all"))


@pytest.mark.parametrize("key", TINY_SPECS)
def test_reading_back_gives_the_same_model(key: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(key)
    written = open_checkpoint(gguf.export(source, tmp_path / "m.gguf", quant="f32").path)
    wanted = logits(source)
    assert np.abs(logits(written) - wanted).max() < 2e-5 * wanted.std()
    same = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context", "tied_head", "activation")
    assert [getattr(written.spec, f) for f in same] == [getattr(source.spec, f) for f in same]
    assert written.spec.eos_ids == source.spec.eos_ids
    assert written.spec.bos_id == source.spec.bos_id
    assert written.spec.sliding_window == source.spec.sliding_window


@pytest.mark.llama
@pytest.mark.parametrize("key", TINY_SPECS)
def test_llamacpp_computes_what_the_reference_computes(key: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from wattwise_runtimes.engines.llamacpp import BACKEND

    source = tiny_checkpoint(key)
    artifact = open_artifact(gguf.export(source, tmp_path / "m.gguf", quant="f32").path)
    window = source.spec.sliding_window if key in ("mistral", "phi3") else None  # llama.cpp has none for these
    ids = IDS[: window or len(IDS)]
    engine = BACKEND.load(artifact, LoadSpec(context=len(ids), kv_type="f32"))
    wanted = logits(source, ids)
    error = np.abs(engine.forward(Batch(ids, logits="all")) - wanted).max() / wanted.std()
    engine.close()
    assert error < GELU_TABLE.get(key, 1e-3)


@pytest.mark.parametrize("key", TINY_SPECS)
def test_tensors_and_keys_are_those_of_an_independent_writer(key: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(key)
    ours = read_gguf(gguf.export(source, tmp_path / "ours.gguf", quant="f32").path)
    theirs = read_gguf(write_tiny_gguf(tmp_path / "theirs.gguf", source.spec, random_weights(source.spec)))
    assert set(ours.tensors) == set(theirs.tensors)
    for name in theirs.tensors:
        assert ours.tensors[name].shape == theirs.tensors[name].shape
        np.testing.assert_allclose(ours.read_rows(name), theirs.read_rows(name), rtol=2e-7, err_msg=name)
    for field, value in theirs.fields.items():
        assert ours.field_types[field] == theirs.field_types[field], field
        assert np.array_equal(ours.fields[field], value), field


@pytest.mark.parametrize("quant", NATIVE)
@pytest.mark.parametrize("key", ["llama3", "phi3", "gpt2"])
def test_a_second_conversion_changes_no_byte(key: str, quant: str, tmp_path: Path) -> None:
    """Rows are reordered, fused and split on the way through a Checkpoint; all of it must be undone exactly."""
    first = gguf.export(tiny_checkpoint(key), tmp_path / "1.gguf", quant=quant).path
    second = gguf.export(open_checkpoint(first), tmp_path / "2.gguf", quant=quant).path
    a, b = read_gguf(first), read_gguf(second)
    assert {n: (t.shape, t.type) for n, t in a.tensors.items()} == {n: (t.shape, t.type) for n, t in b.tensors.items()}
    for name in a.tensors:
        assert np.array_equal(a.raw(name), b.raw(name)), name


@pytest.mark.parametrize("quant", NATIVE)
def test_each_type_is_in_the_file_and_as_exact_as_it_can_be(quant: str, tmp_path: Path) -> None:
    source = tiny_checkpoint("llama3")
    result = gguf.export(source, tmp_path / "m.gguf", quant=quant)
    file = read_gguf(result.path)
    assert quant_name(file) == quant
    assert file.tensors["blk.1.ffn_up.weight"].type == quant
    assert file.tensors["blk.1.ffn_norm.weight"].type == "f32"
    assert file.tensors["output.weight"].type == ("q8_0" if quant in ("q4_0", "q4_1", "q5_0", "q5_1") else quant)
    written = open_checkpoint(result.path)
    weight = source.tensors["blk.1.attn_q.weight"].read()
    error = np.sqrt(np.square(written.tensors["blk.1.attn_q.weight"].read() - weight).mean() / np.square(weight).mean())
    limits = {"f32": 0.0, "f16": 3e-4, "bf16": 2.5e-3, "q8_0": 6e-3, "q5_1": 0.04, "q5_0": 0.045, "q4_1": 0.08}
    assert error <= limits.get(quant, 0.09)
    assert result.bytes == result.path.stat().st_size


def test_rows_that_no_block_fits_are_f16_and_said_so(tmp_path: Path) -> None:
    source = tiny_checkpoint("llama", ffn=172)
    result = gguf.export(source, tmp_path / "m.gguf", quant="q4_0")
    types = {name: tensor.type for name, tensor in read_gguf(result.path).tensors.items()}
    assert types["blk.0.ffn_down.weight"] == "f16"
    assert types["blk.0.ffn_up.weight"] == "q4_0"
    assert any("ffn_down.weight x 3" in note and "172" in note and "f16" in note for note in result.notes)
    assert any("token_embd.weight" in note and "q8_0" in note for note in result.notes)


def test_the_tokenizer_and_the_template_go_along(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    source = tiny_checkpoint("llama", vocab=264, tokenizer=tokenizer, eos_ids=(257, 258))
    path = gguf.export(source, tmp_path / "m.gguf", quant="q8_0").path
    written = load_tokenizer(path)
    text = "<|im_start|>Grüße, 世界!\n"
    for special in (False, True):
        assert written.encode(text, parse_special=special) == tokenizer.encode(text, parse_special=special)
    assert written.chat_template == tokenizer.chat_template
    assert set(open_artifact(path).spec.eos_ids) >= {257, 258}
    assert written.vocab_size == 264  # padded to the embedding's rows


def test_a_name_is_always_there(tmp_path: Path) -> None:
    named = tiny_checkpoint("llama", name="Tiny One")
    assert open_artifact(gguf.export(named, tmp_path / "a.gguf", quant="f16").path).spec.name == "Tiny One"
    unnamed = gguf.export(tiny_checkpoint("llama"), tmp_path / "b.gguf", quant="f16").path
    assert read_gguf(unnamed).fields["general.name"] == "tiny"


@pytest.mark.parametrize(
    ("key", "change", "word"),
    [
        ("llama", {"activation": "gelu_tanh"}, "activation"),
        ("llama", {"qk_norm": True}, "qk_norm"),
        ("qwen2", {"attn_out_bias": True}, "attn_out_bias"),
        ("gpt2", {"activation": "gelu"}, "activation"),
        ("gemma2", {"tied_head": False}, "tied_head"),
        ("gemma2", {"embed_scale": 1.0}, "embed_scale"),
        ("qwen2", {"head_dim": 32}, "heads"),
        ("mistral", {"sliding_layers": (True, False, True)}, "sliding_layers"),
    ],
)
def test_what_llamacpp_would_compute_wrongly_is_refused(
    key: str, change: dict[str, Any], word: str, tmp_path: Path
) -> None:
    with pytest.raises(ConvertError, match=word):
        gguf.export(tiny_checkpoint(key, **change), tmp_path / "m.gguf", quant="f32")
    assert list(tmp_path.iterdir()) == []


def test_rope_that_llamacpp_lacks_is_refused(tmp_path: Path) -> None:
    spec = TINY_SPECS["llama3"]
    assert spec.rope is not None
    partial = dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, dims=8))
    with pytest.raises(ConvertError, match="dims"):
        gguf.export(checkpoint_of(partial, random_weights(partial)), tmp_path / "m.gguf", quant="f32")
    qwen = dataclasses.replace(TINY_SPECS["qwen3"], rope=spec.rope)
    with pytest.raises(ConvertError, match="llama3"):
        gguf.export(checkpoint_of(qwen, random_weights(qwen)), tmp_path / "m.gguf", quant="f32")


def test_unknown_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="mamba"):
        gguf.export(tiny_checkpoint("llama", architecture="mamba"), tmp_path / "m.gguf", quant="f32")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_refused_by_name(bad: float, tmp_path: Path) -> None:
    spec = TINY_SPECS["llama"]
    weights = random_weights(spec)
    weights["blk.1.ffn_up.weight"][3, 5] = bad
    with pytest.raises(ConvertError, match=r"blk\.1\.ffn_up\.weight.*1 values"):
        gguf.export(checkpoint_of(spec, weights), tmp_path / "m.gguf", quant="q8_0")
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_f16_are_refused_with_a_way_out(tmp_path: Path) -> None:
    spec = TINY_SPECS["llama"]
    weights = random_weights(spec)
    weights["blk.0.attn_v.weight"][0, 0] = 1e5
    source = checkpoint_of(spec, weights)
    with pytest.raises(ConvertError, match=r"attn_v\.weight.*bf16"):
        gguf.export(source, tmp_path / "m.gguf", quant="f16")
    gguf.export(source, tmp_path / "m.gguf", quant="bf16")


def test_missing_extra_and_misshaped_tensors_are_refused_by_name(tmp_path: Path) -> None:
    source = tiny_checkpoint("llama")
    name = "blk.2.attn_k.weight"
    less = {n: t for n, t in source.tensors.items() if n != name}
    wrong = {**source.tensors, name: TensorSource.from_array(name, np.zeros((16, 64), np.float32))}
    more = {**source.tensors, "blk.0.lora": source.tensors[name]}
    for tensors, word in ((less, "missing"), (wrong, "shape"), (more, "lora")):
        with pytest.raises(ConvertError, match=word):
            gguf.export(dataclasses.replace(source, tensors=tensors), tmp_path / "m.gguf", quant="f32")


@pytest.mark.parametrize(("name", "word"), [("q9_9", "q4_k_m"), ("iq2_xxs", "importance matrix"), ("int4", "q4_0")])
def test_types_that_do_not_exist_are_refused_with_those_that_do(name: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=word):
        gguf.export(tiny_checkpoint(), tmp_path / "m.gguf", quant=name)
