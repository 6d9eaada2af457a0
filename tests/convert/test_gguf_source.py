"""GGUF files as a source: stored types, RoPE factor tensors, window patterns; and what is no model at all."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from support.gguf_files import write_tiny_gguf
from support.specs import TINY_SPECS, random_weights
from wattwise_convert.sources import open_checkpoint
from wattwise_devices.errors import LoadError
from wattwise_runtimes.formats.gguf import read_gguf
from wattwise_runtimes.formats.gguf_spec import canonical_tensors, quant_name, spec_from_gguf
from wattwise_runtimes.spec import ModelSpec


def read(path: Path) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    file = read_gguf(path)
    spec = spec_from_gguf(file)
    tensors = canonical_tensors(file, spec)
    assert {n: t.shape for n, t in tensors.items()} == spec.tensor_shapes()
    return spec, {name: tensor.read_rows(0, tensor.shape[0]) for name, tensor in tensors.items()}


@pytest.mark.parametrize("key", ["llama3", "phi4-mini"])
@pytest.mark.parametrize("context", [16, 64, 1024])
def test_rope_factors_give_the_same_angles(key: str, context: int, tmp_path: Path) -> None:
    wanted = TINY_SPECS[key].rope
    spec, _ = read(write_tiny_gguf(tmp_path / "m.gguf", TINY_SPECS[key], random_weights(TINY_SPECS[key])))
    assert spec.rope is not None and wanted is not None
    np.testing.assert_allclose(
        spec.rope.inverse_frequencies(context=context), wanted.inverse_frequencies(context=context), rtol=1e-6
    )
    assert spec.rope.attention_factor == pytest.approx(wanted.attention_factor)


@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_0"])
def test_stored_types_and_errors(quant: str, tmp_path: Path) -> None:
    spec, weights = TINY_SPECS["qwen3"], random_weights(TINY_SPECS["qwen3"])
    path = write_tiny_gguf(tmp_path / "m.gguf", spec, weights, quant)
    checkpoint = open_checkpoint(path)
    assert quant_name(read_gguf(path)) == quant
    assert checkpoint.tensors["blk.0.attn_q.weight"].dtype == quant
    assert checkpoint.tensors["output_norm.weight"].dtype == "f32"
    limit = {"f16": 1e-3, "q8_0": 0.01, "q4_0": 0.15}[quant]
    for name, tensor in checkpoint.tensors.items():
        assert np.sqrt(np.mean((tensor.read() - weights[name]) ** 2)) < limit * np.sqrt(np.mean(weights[name] ** 2))


def test_sliding_pattern_by_period_and_by_default(tmp_path: Path) -> None:
    for period, expected in ((None, (True,) * 5 + (False, True)), (2, (True, False) * 3 + (True,))):
        wanted = dataclasses.replace(TINY_SPECS["gemma3_text"], layers=7, sliding_layers=())
        path = write_tiny_gguf(tmp_path / "m.gguf", wanted, random_weights(wanted))
        file = read_gguf(path)
        if period is not None:
            key = "gemma3.attention.sliding_window_pattern"
            file = dataclasses.replace(
                file, fields={**file.fields, key: period}, field_types={**file.field_types, key: "uint32"}
            )
        assert spec_from_gguf(file).sliding_layers == expected


def test_largest_gemmas_scale_scores_by_width(tmp_path: Path) -> None:
    """llama.cpp divides by the square root of width / heads instead of the head size in the 27B models."""
    wanted = dataclasses.replace(TINY_SPECS["gemma2"], layers=46, head_dim=32, attn_scale=None, sliding_layers=())
    spec, _ = read(write_tiny_gguf(tmp_path / "m.gguf", wanted, random_weights(wanted)))
    assert spec.attn_scale == pytest.approx(1 / math.sqrt(16))


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "model.pt").write_bytes(b"\x80\x02")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name, words in (
        ("missing", "no model"), ("notes.txt", "notes.txt"), ("model.pt", "pickle"), (".", "config.json"),
        ("model.safetensors", "folder"),
    ):  # fmt: skip
        with pytest.raises(LoadError, match=words):
            open_checkpoint(tmp_path / name)
