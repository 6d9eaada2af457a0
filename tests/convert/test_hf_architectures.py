"""Every architecture: a checkpoint that transformers made, read by us and run by the reference engine, gives
transformers' own logits. Also the ways in which folders differ: shards, 16-bit weights, older configs, image models.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.hf_models import ARCHS, hf_logits, make_hf_folder
from wattwise_convert.checkpoint import Checkpoint
from wattwise_convert.sources import open_checkpoint
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine

_MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)} (the [reference] extra)"),
]

TOLERANCE = 2e-5  # of the logits' standard deviation, near 1: float32 rounding


def ids(count: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


def logits(checkpoint: Checkpoint, tokens: list[int], context: int) -> np.ndarray:
    weights = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
    engine = ReferenceEngine(checkpoint.spec, weights, LoadSpec(context=context, kv_type="f32"))
    return engine.forward(Batch(tokens, logits="all")).copy()


def error(folder: Path, tokens: list[int], context: int = 64) -> float:
    expected = hf_logits(folder, tokens)
    assert 0.5 < expected.std() < 2  # else the comparison would be blind
    return float(np.abs(logits(open_checkpoint(folder), tokens, context) - expected).max() / expected.std())


def edit(path: Path, **changes: Any) -> dict[str, Any]:
    config = json.loads(path.read_text())
    config.update(changes)
    config = {k: v for k, v in config.items() if v is not ...}
    path.write_text(json.dumps(config))
    return config


@pytest.mark.parametrize("arch", ARCHS)
def test_logits_equal_transformers(arch: str, tmp_path: Path) -> None:
    folder = make_hf_folder(arch, tmp_path / "model")
    assert error(folder, ids(40)) < TOLERANCE


def test_a_changed_layer_is_noticed(tmp_path: Path) -> None:
    """What the tolerance is worth: swapped gate and up, or a RoPE base off by a tenth, are far outside."""
    folder = make_hf_folder("llama", tmp_path / "model")
    expected = hf_logits(folder, ids(40))
    edit(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 11000.0})
    assert np.abs(logits(open_checkpoint(folder), ids(40), 64) - expected).max() > 100 * TOLERANCE


def test_longrope_takes_the_long_factors_beyond_the_original_context(tmp_path: Path) -> None:
    folder = make_hf_folder("phi4-mini", tmp_path / "model")
    tokens = ids(80)  # original context: 64
    assert error(folder, tokens, context=100) < TOLERANCE
    short = logits(open_checkpoint(folder), tokens[:60], context=64)
    long = logits(open_checkpoint(folder), tokens[:60], context=100)
    assert np.abs(short - long).max() > 0.01


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_16_bits(dtype: str, tmp_path: Path) -> None:
    import torch
    import transformers

    folder = make_hf_folder("qwen2", tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    assert {t.dtype for t in checkpoint.tensors.values()} == {"f16" if dtype == "float16" else "bf16"}
    assert error(folder, ids(40)) < TOLERANCE  # the reference also computes in float32, on the rounded weights


def test_shards(tmp_path: Path) -> None:
    import transformers

    folder = make_hf_folder("llama", tmp_path / "model")
    whole = open_checkpoint(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    sharded = tmp_path / "sharded"
    model.save_pretrained(sharded, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    parts = open_checkpoint(sharded)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(parts.tensors[name].read(), tensor.read())
    assert {f.name for f in parts.files} >= {f.name for f in sharded.glob("*.safetensors")}


OLD_ROPE: dict[str, dict[str, Any]] = {
    "llama-llama3": {
        "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64},
    },
    "llama-linear": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "gemma3_text": {
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}
    },
    "phi4-mini": {
        "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
                         "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 16.0]},
    },
}  # fmt: skip


@pytest.mark.parametrize("arch", OLD_ROPE)
def test_configs_of_transformers_4_mean_the_same(arch: str, tmp_path: Path) -> None:
    folder = make_hf_folder(arch, tmp_path / "model")
    new = open_checkpoint(folder).spec
    edit(folder / "config.json", rope_parameters=..., **OLD_ROPE[arch])
    assert open_checkpoint(folder).spec == new


def test_rows_in_pieces_equal_the_whole(tmp_path: Path) -> None:
    """Fused, transposed and shifted tensors, read row by row as a lowering does."""
    for arch in ("phi3", "gpt2", "gemma2"):
        for tensor in open_checkpoint(make_hf_folder(arch, tmp_path / arch)).tensors.values():
            whole = tensor.read()
            assert whole.shape == tensor.shape and whole.dtype == np.float32
            cuts = [0, 1, tensor.shape[0] // 3, tensor.shape[0] - 1, tensor.shape[0]]
            parts = [tensor.read(a, b) for a, b in itertools.pairwise(cuts)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_part_of_an_image_model(prefix: str, tmp_path: Path) -> None:
    """Gemma 3 with images: the settings are nested, the names have a longer prefix, and there is a vision tower."""
    from safetensors.numpy import load_file, save_file

    plain_folder, folder = make_hf_folder("gemma3_text", tmp_path / "a" / "model"), tmp_path / "b" / "model"
    plain = open_checkpoint(plain_folder)
    shutil.copytree(plain_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": config, "vision_config": {"hidden_size": 8}})
    )
    tensors = load_file(plain_folder / "model.safetensors")
    tensors = {name.replace("model.", prefix, 1): value for name, value in tensors.items()}
    tensors["vision_tower.vision_model.embeddings.weight"] = np.zeros((2, 2), np.float32)
    save_file(tensors, folder / "model.safetensors")
    wrapped = open_checkpoint(folder)
    assert wrapped.spec == plain.spec
    for name, tensor in plain.tensors.items():
        np.testing.assert_array_equal(wrapped.tensors[name].read(), tensor.read())


def test_ends_of_a_reply_from_every_file(tmp_path: Path) -> None:
    folder = make_hf_folder("llama", tmp_path / "model")
    edit(folder / "config.json", eos_token_id=[7, 257])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    spec = open_checkpoint(folder).spec
    assert spec.eos_ids == (7, 257, 9)  # 257 also by the tokenizer
    assert spec.bos_id == 256 and spec.add_bos and spec.chat_template and spec.name == "model"


def test_without_a_tokenizer_only_ids(tmp_path: Path) -> None:
    folder = make_hf_folder("llama", tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).unlink()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tokenizer is None and checkpoint.spec.eos_ids == (257,) and not checkpoint.spec.add_bos
