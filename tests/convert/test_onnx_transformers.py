"""Hugging Face folder -> ONNX -> onnxruntime gives transformers' logits, for every architecture, windows included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.hf_models import ARCHS, hf_logits, make_hf_folder
from wattwise_convert.api import convert
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.onnx import BACKEND

TOLERANCE = 1e-3  # in standard deviations of the logits
TOKENS = 80  # beyond every sliding window and LongRoPE's original context


@pytest.mark.reference
@pytest.mark.parametrize("key", sorted(ARCHS))
def test_onnxruntime_gives_transformers_logits(key: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = make_hf_folder(key, tmp_path / "hf")
    lowered = convert(folder, tmp_path / "onnx", quant="fp32").path
    tokens = np.random.default_rng(1).integers(0, 256, TOKENS).tolist()
    engine = BACKEND.load(open_artifact(lowered), LoadSpec(context=TOKENS, chunk=16, kv_type="f32", threads=1))
    try:
        found = engine.forward(Batch(tokens[:-5], logits="all")).copy()
        steps = [engine.forward(Batch([token])).copy() for token in tokens[-5:]]
    finally:
        engine.close()
    expected = hf_logits(folder, tokens)
    assert 0.5 < expected.std() < 2  # else the comparison would be blind
    assert np.abs(np.concatenate([found, *steps]) - expected).max() < TOLERANCE * expected.std()
