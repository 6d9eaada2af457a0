"""transformers' logits processors, where their definitions coincide with llama.cpp's."""

from __future__ import annotations

import numpy as np
import pytest

from wattwise.sampling import Sampler, SamplerParams

pytestmark = pytest.mark.reference
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def processors(name: str):
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    makers = {
        "temperature": lambda: process.TemperatureLogitsWarper(0.6),
        "top_k": lambda: process.TopKLogitsWarper(9),
        "top_p": lambda: process.TopPLogitsWarper(0.85),
        "min_p": lambda: process.MinPLogitsWarper(0.07),
        "typical": lambda: process.TypicalLogitsWarper(0.8),
        "repeat": lambda: process.RepetitionPenaltyLogitsProcessor(1.3),
    }
    return torch, makers[name]()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("temperature", {"temperature": 0.6}),
        ("top_k", {"top_k": 9}),
        ("top_p", {"top_p": 0.85}),
        ("min_p", {"min_p": 0.07}),
        ("typical", {"typical_p": 0.8}),
        ("repeat", {"repeat_penalty": 1.3, "repeat_last_n": -1}),
    ],
)
def test_same_distribution(name, params) -> None:
    torch, processor = processors(name)
    rng = np.random.default_rng(4)
    for _ in range(8):
        logits = (rng.standard_normal(500) * 2).astype(np.float32)
        history = rng.integers(0, 500, 40).tolist()
        warped = processor(torch.tensor([history]), torch.tensor(logits[None]))
        expected = torch.softmax(warped, dim=-1)[0].numpy()
        ids, chances = Sampler(SamplerParams(**{**OFF, **params}), history=history).distribution(logits)
        found = np.zeros(500)
        found[ids] = chances
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)
