"""Qwen 3 (dense): Llama's layout with an RMSNorm over each head of q and k."""

from __future__ import annotations

from wattwise_convert.archs._common import sizes
from wattwise_convert.archs._config import Config
from wattwise_convert.archs._rope import rope_spec
from wattwise_convert.archs.qwen2 import qwen_window
from wattwise_runtimes.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    """What the config describes."""
    config.refuse_features(mlp_bias=(False,))
    base = sizes(config, max_position_embeddings=32768, head_dim=128)
    bias = config.flag("attention_bias", False)
    return ModelSpec(
        architecture="qwen3", **base, norm_eps=config.number("rms_norm_eps", 1e-6, most=1),
        activation=config.activation(), rope=rope_spec(config, base["head_dim"]), qkv_bias=bias, attn_out_bias=bias,
        qk_norm=True, tied_head=config.flag("tie_word_embeddings", False), **qwen_window(config, base["layers"]),
    )  # fmt: skip
