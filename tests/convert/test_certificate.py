"""Certificates: sound conversions get a clean one, and each kind of damage is found."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.chat_model import CHATML, byte_tokenizer
from support.checkpoints import checkpoint_of, tiny_checkpoint
from support.specs import TINY_SPECS, random_weights
from wattwise_convert import gguf
from wattwise_convert.api import convert
from wattwise_convert.certificate import certify
from wattwise_convert.streamed import StreamedWeights
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine


@pytest.mark.parametrize("key", TINY_SPECS)
def test_a_lossless_gguf_has_no_problem(key: str, tmp_path: Path) -> None:
    certificate = convert(tiny_checkpoint(key), tmp_path / "m.gguf", quant="f32", certify=True).certificate
    assert certificate is not None
    assert certificate.problems == ()
    assert max(tensor.relative_rms for tensor in certificate.tensors) < 1e-6
    assert certificate.logits.kl_mean < 1e-5
    assert certificate.logits.top1 > 0.99


@pytest.mark.parametrize("quant", ["fp32", "fp16", "int8", "int4", "int2"])
def test_onnx_weights_are_read_back_as_they_were_meant(quant: str, tmp_path: Path) -> None:
    certificate = convert(tiny_checkpoint("llama3"), tmp_path / "m", quant=quant, certify=True).certificate
    assert certificate is not None
    assert certificate.path == tmp_path / "m" / "certificate.json"
    assert certificate.problems == ()
    limits = {"fp32": 0.0, "fp16": 3e-4, "int8": 6e-3, "int4": 0.1, "int2": 0.5}
    assert max(tensor.relative_rms for tensor in certificate.tensors) <= limits[quant]
    assert certificate.logits.kl_mean < {"fp32": 1e-9, "fp16": 1e-4, "int8": 1e-2}.get(quant, 10)


@pytest.mark.parametrize("quant", ["q8_0", "q4_0"])
def test_errors_are_those_computed_directly(quant: str, tmp_path: Path) -> None:
    """Against a plain computation over whole tensors of the file that the gguf package reads."""
    import gguf as gguf_package

    spec = TINY_SPECS["qwen3"]
    weights = random_weights(spec)
    certificate = convert(checkpoint_of(spec, weights), tmp_path / "m.gguf", quant=quant, certify=True).certificate
    assert certificate is not None
    stored = {tensor.name: tensor for tensor in gguf_package.GGUFReader(tmp_path / "m.gguf").tensors}
    for entry in certificate.tensors:
        tensor, wanted = stored[entry.name], weights[entry.name]
        read = gguf_package.dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
        relative = np.linalg.norm(read - wanted) / np.linalg.norm(wanted)
        assert entry.relative_rms == pytest.approx(relative, abs=1e-6)
        assert entry.max_abs_error == pytest.approx(np.abs(read - wanted).max(), abs=1e-6)


def test_the_file_says_what_the_object_says(tmp_path: Path) -> None:
    result = convert(tiny_checkpoint(), tmp_path / "m.gguf", quant="q8_0", certify=True)
    assert result.certificate is not None
    said = json.loads((tmp_path / "m.gguf.certificate.json").read_text())
    assert said == json.loads(json.dumps(result.certificate.to_json()))
    assert said["written_files"] == [
        {
            "name": "m.gguf",
            "bytes": result.bytes,
            "sha256": hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest(),
        }
    ]
    assert "KL divergence" in str(result.certificate)


def test_a_damaged_weight_is_found(tmp_path: Path) -> None:
    spec = TINY_SPECS["llama"]
    weights = random_weights(spec)
    source = checkpoint_of(spec, weights)
    damaged = {name: value.copy() for name, value in weights.items()}
    damaged["blk.1.attn_k.weight"][[0, 1]] = damaged["blk.1.attn_k.weight"][[1, 0]]  # two rows in the wrong order
    path = gguf.export(checkpoint_of(spec, damaged), tmp_path / "m.gguf", quant="f32").path
    problems = certify(source, path, "gguf").problems
    assert len(problems) == 1
    assert "blk.1.attn_k.weight" in problems[0]


@pytest.mark.parametrize(
    ("change", "word"), [({"norm_eps": 1e-3}, "norm_eps"), ({"eos_ids": (3,)}, "eos_ids"), ({"bos_id": 7}, "bos_id")]
)
def test_a_wrong_field_is_found(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    path = gguf.export(tiny_checkpoint("llama", **change), tmp_path / "m.gguf", quant="f32").path
    assert any(word in problem for problem in certify(tiny_checkpoint("llama"), path, "gguf").problems)


def test_another_rope_is_found(tmp_path: Path) -> None:
    path = gguf.export(tiny_checkpoint("llama"), tmp_path / "m.gguf", quant="f32").path
    rope = TINY_SPECS["llama"].rope
    assert rope is not None
    other = tiny_checkpoint("llama", rope=dataclasses.replace(rope, base=5e5))
    certificate = certify(other, path, "gguf")
    assert any("rope" in problem for problem in certificate.problems)
    assert certificate.logits.kl_mean > 1e-3


def test_the_tokenizer_and_the_template_are_compared(tmp_path: Path) -> None:
    fields = {"vocab": 259, "eos_ids": (257,), "bos_id": None}
    source = tiny_checkpoint("llama", tokenizer=byte_tokenizer(), **fields, chat_template=CHATML)
    sound = convert(source, tmp_path / "sound.gguf", quant="f32", certify=True).certificate
    assert sound is not None
    assert sound.problems == ()
    assert sound.template_sha256 is not None
    other = byte_tokenizer(template="{{ messages[0].content }}")
    path = gguf.export(dataclasses.replace(source, tokenizer=other), tmp_path / "other.gguf", quant="f32").path
    certificate = certify(source, path, "gguf")
    assert any("template" in problem for problem in certificate.problems)
    assert certificate.template_sha256 != sound.template_sha256


def test_streamed_weights_give_the_same_logits() -> None:
    ids = np.arange(20) % 256
    for key, spec in TINY_SPECS.items():
        weights, load = random_weights(spec), LoadSpec(context=32, kv_type="f32")
        whole = ReferenceEngine(spec, weights, load).forward(Batch(ids, logits="all"))
        streamed = StreamedWeights(checkpoint_of(spec, weights).tensors)
        assert np.array_equal(ReferenceEngine(spec, streamed, load).forward(Batch(ids, logits="all")), whole), key
