"""Qwen 2 and 2.5 (dense): Llama's layout with biases on q, k and v."""

from __future__ import annotations

from typing import Any

from wattwise_convert.archs._common import layer_types, optional_window, sizes, window
from wattwise_convert.archs._config import MAX_LAYERS, Config
from wattwise_convert.archs._rope import rope_spec
from wattwise_runtimes.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    """What the config describes."""
    config.refuse_features(attention_bias=(True,), mlp_bias=(False,))
    base = sizes(config, max_position_embeddings=32768)
    return ModelSpec(
        architecture="qwen2", **base, norm_eps=config.number("rms_norm_eps", 1e-6, most=1),
        activation=config.activation(), rope=rope_spec(config, base["head_dim"]), qkv_bias=True,
        tied_head=config.flag("tie_word_embeddings", False), **qwen_window(config, base["layers"]),
    )  # fmt: skip


def qwen_window(config: Config, layers: int) -> dict[str, Any]:
    """Where use_sliding_window says so, the layers from max_window_layers on slide."""
    if not config.flag("use_sliding_window", False):
        return {}
    first = config.count("max_window_layers", 28, most=MAX_LAYERS, least=0)
    sliding = layer_types(config, layers, [i >= first for i in range(layers)])
    return window(config, sliding, optional_window(config, 4096))
