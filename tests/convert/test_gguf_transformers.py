"""Hugging Face folder -> GGUF -> llama.cpp gives transformers' logits, for every architecture; and GGUF -> GGUF.

The two ends share no code: transformers wrote and ran the model, llama.cpp read and ran the file between them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.hf_models import ARCHS, hf_logits, make_hf_folder
from wattwise_convert.api import convert
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.formats.gguf import GGUFFile, read_gguf

# Largest logit error in standard deviations. ggml looks GELU up in a table of f16 values.
TOLERANCE = 1e-3
LOOSER = {"gemma2": 2e-3, "gemma3_text": 2e-3, "gpt2": 2e-3}
WINDOW = 8  # of the architectures that llama.cpp runs without one: right up to there


@pytest.fixture(scope="module", params=sorted(ARCHS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """(key, folder made by transformers, the GGUF file we made of it)."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = make_hf_folder(request.param, tmp_path_factory.mktemp("hf") / request.param)
    return request.param, folder, convert(folder, folder.with_suffix(".gguf"), quant="f32").path


@pytest.mark.reference
@pytest.mark.llama
def test_llama_cpp_gives_transformers_logits(model: tuple[str, Path, Path]) -> None:
    pytest.importorskip("llama_cpp")
    key, folder, path = model
    count = {"mistral": WINDOW, "phi3": WINDOW, "phi4-mini": 80}.get(key, 40)  # 80: beyond the original 64
    _compare(folder, path, count, LOOSER.get(key, TOLERANCE))


@pytest.mark.reference
@pytest.mark.llama
def test_longrope_uses_its_short_factors_up_to_the_original_context(tmp_path: Path) -> None:
    for module in ("torch", "transformers", "llama_cpp"):
        pytest.importorskip(module)
    rope = ARCHS["phi4-mini"][1]["rope_parameters"] | {"original_max_position_embeddings": 256}
    folder = make_hf_folder(
        "phi4-mini", tmp_path / "model", original_max_position_embeddings=256, max_position_embeddings=1024,
        rope_parameters=rope,
    )  # fmt: skip
    _compare(folder, convert(folder, tmp_path / "model.gguf", quant="f32").path, 40, TOLERANCE)


def _compare(folder: Path, path: Path, count: int, tolerance: float) -> None:
    """llama.cpp on the file and transformers on the folder, on `count` random tokens."""
    from wattwise_runtimes.engines.llamacpp import BACKEND

    tokens = np.random.default_rng(1).integers(0, 256, count).tolist()
    engine = BACKEND.load(open_artifact(path), LoadSpec(context=count, chunk=16, kv_type="f32", threads=1))
    try:
        found = engine.forward(Batch(tokens, logits="all")).copy()
    finally:
        engine.close()
    expected = hf_logits(folder, tokens)
    assert 0.5 < expected.std() < 2  # else the comparison would be blind
    assert np.abs(found - expected).max() < tolerance * expected.std()


def _contents(file: GGUFFile) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {t.name: (t.type, t.shape, file.raw(t.name).tobytes()) for t in file.tensors.values()}


@pytest.mark.reference
def test_a_gguf_of_the_gguf_has_the_same_tensors(model: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, _, path = model
    again = read_gguf(convert(path, tmp_path / "again.gguf", quant="f32").path)
    first = read_gguf(path)
    assert _contents(again) == _contents(first)
    differing = {
        k for k in set(first.fields) | set(again.fields) if not _same(first.fields.get(k), again.fields.get(k))
    }
    assert differing <= {"general.name"}


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b
