"""Stock onnxruntime-genai loads our folders and decodes what our engine decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.onnx_folders import write_onnx_folder
from support.specs import TINY_SPECS, random_weights
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.onnx import BACKEND

og = pytest.importorskip("onnxruntime_genai")


@pytest.mark.parametrize("quant", ["fp32", "int4"])
@pytest.mark.parametrize("name", TINY_SPECS)
def test_same_logits_and_greedy_ids(name: str, quant: str, tmp_path: Path) -> None:
    spec = TINY_SPECS[name]
    folder = write_onnx_folder(tmp_path / "m", spec, random_weights(spec), quant=quant, context=64)
    engine = BACKEND.load(open_artifact(folder), LoadSpec(context=64, kv_type="f32"))
    ids = np.random.default_rng(2).integers(3, spec.vocab, 20)
    params_model = og.Model(str(folder))
    params = og.GeneratorParams(params_model)
    params.set_search_options(max_length=64, min_length=60, do_sample=False)
    generator = og.Generator(params_model, params)
    generator.append_tokens(ids.astype(np.int32))
    theirs = np.array(generator.get_logits()).reshape(-1)
    ours = engine.forward(Batch(ids))[0]
    # genai masks the end tokens until min_length
    kept = [i for i in range(spec.vocab) if i not in spec.eos_ids]
    assert np.abs(theirs[kept] - ours[kept]).max() < 1e-4 * ours.std()
    for _ in range(20):
        generator.generate_next_token()
        masked = ours.copy()
        masked[list(spec.eos_ids)] = -np.inf
        best = int(masked.argmax())
        assert int(generator.get_next_tokens()[0]) == best
        ours = engine.forward(Batch([best]))[0]
