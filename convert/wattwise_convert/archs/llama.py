"""Llama 1 to 3.3, and the many models of the same layout (SmolLM, TinyLlama, Yi, ...)."""

from __future__ import annotations

from wattwise_convert.archs._common import sizes
from wattwise_convert.archs._config import Config
from wattwise_convert.archs._rope import rope_spec
from wattwise_runtimes.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    """What the config describes."""
    base = sizes(config, max_position_embeddings=2048)
    bias = config.flag("attention_bias", False)
    return ModelSpec(
        architecture="llama", **base, norm_eps=config.number("rms_norm_eps", 1e-6, most=1),
        activation=config.activation(), rope=rope_spec(config, base["head_dim"]), qkv_bias=bias, attn_out_bias=bias,
        ffn_bias=config.flag("mlp_bias", False), tied_head=config.flag("tie_word_embeddings", False),
    )  # fmt: skip
