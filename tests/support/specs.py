"""Tiny random models in canonical form: one ModelSpec per architecture, and weights for any of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wattwise_runtimes.spec import ModelSpec, RopeSpec

_BASE: dict[str, Any] = {
    "layers": 3, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 96, "vocab": 256, "context": 256,
    "bos_id": 1, "eos_ids": (2,),
}  # fmt: skip

TINY_SPECS: dict[str, ModelSpec] = {
    "llama": ModelSpec(architecture="llama", rope=RopeSpec(dims=16), tied_head=True, **_BASE),
    "llama3": ModelSpec(
        architecture="llama",
        rope=RopeSpec(dims=16, base=500000.0, scaling="llama3", factor=8.0, low_freq_factor=1.0,
                      high_freq_factor=4.0, original_context=64),
        **_BASE,
    ),
    "llama-linear": ModelSpec(
        architecture="llama", rope=RopeSpec(dims=16, scaling="linear", factor=2.0), **_BASE
    ),
    "mistral": ModelSpec(architecture="mistral", rope=RopeSpec(dims=16), sliding_window=8, **_BASE),
    "qwen2": ModelSpec(architecture="qwen2", rope=RopeSpec(dims=16, base=1e6), qkv_bias=True, **_BASE),
    "qwen3": ModelSpec(architecture="qwen3", rope=RopeSpec(dims=16, base=1e6), qk_norm=True, tied_head=True, **_BASE),
    "gemma2": ModelSpec(
        architecture="gemma2", rope=RopeSpec(dims=16), activation="gelu_tanh", post_norms=True,
        attn_scale=1 / math.sqrt(24), attn_softcap=50.0, final_softcap=30.0, embed_scale=8.0, tied_head=True,
        sliding_window=8, sliding_layers=(True, False, True), **_BASE,
    ),
    "gemma3_text": ModelSpec(
        architecture="gemma3_text", rope=RopeSpec(dims=16, base=1e6, local_base=1e4, scaling="linear", factor=8.0),
        activation="gelu_tanh", post_norms=True, qk_norm=True, attn_scale=1 / math.sqrt(24), embed_scale=8.0,
        tied_head=True, sliding_window=8, sliding_layers=(True, True, False), **_BASE,
    ),
    "phi3": ModelSpec(architecture="phi3", rope=RopeSpec(dims=16), sliding_window=200, **_BASE),
    "phi4-mini": ModelSpec(
        architecture="phi3",
        rope=RopeSpec(dims=12, scaling="longrope", original_context=32, attention_factor=1.19,
                      short_factor=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5), long_factor=(1.0, 1.5, 2.0, 4.0, 8.0, 16.0)),
        tied_head=True, **_BASE,
    ),
    "gpt2": ModelSpec(
        architecture="gpt2", norm="layer", activation="gelu_tanh", gated_ffn=False, qkv_bias=True, attn_out_bias=True,
        ffn_bias=True, tied_head=True, **{**_BASE, "kv_heads": 4},
    ),
}  # fmt: skip


def random_weights(spec: ModelSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """Canonical float32 weights, scaled so that activations and logits keep a standard deviation near 1."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, shape in spec.tensor_shapes().items():
        if name.endswith(".bias"):
            value = 0.1 * rng.standard_normal(shape)
        elif len(shape) == 1:
            value = 1 + 0.1 * rng.standard_normal(shape)
        elif "embd" in name:
            value = rng.standard_normal(shape) / (spec.embed_scale if name.startswith("token") else 1)
        else:
            value = rng.standard_normal(shape) / math.sqrt(shape[1])
        weights[name] = value.astype(np.float32)
    return weights
