"""Gemma 2: norms around each half of a layer, every other layer sliding, soft caps on scores and logits."""

from __future__ import annotations

import math
from typing import Literal

from wattwise_convert.archs._common import Places, gemma_places, layer_types, sizes, window
from wattwise_convert.archs._config import MAX_POSITIONS, Config
from wattwise_convert.archs._rope import rope_spec
from wattwise_runtimes.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    """What the config describes."""
    config.refuse_features(attention_bias=(False,), mlp_bias=(False,))
    base = sizes(config, head_dim=256, max_position_embeddings=8192)
    layers = base["layers"]
    sliding = layer_types(config, layers, [i % 2 == 0 for i in range(layers)])
    return ModelSpec(
        architecture="gemma2", **base, norm_eps=config.number("rms_norm_eps", 1e-6, most=1),
        activation=gemma_activation(config), rope=rope_spec(config, base["head_dim"]), post_norms=True,
        attn_scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
        attn_softcap=config.optional_number("attn_logit_softcapping", 50.0),
        final_softcap=config.optional_number("final_logit_softcapping", 30.0), embed_scale=math.sqrt(base["hidden"]),
        tied_head=config.flag("tie_word_embeddings", True),
        **window(config, sliding, config.count("sliding_window", 4096, most=MAX_POSITIONS)),
    )  # fmt: skip


def gemma_activation(config: Config) -> Literal["silu", "gelu", "gelu_tanh"]:
    """Gemma's `hidden_activation`; the older `hidden_act` says "gelu" and was never obeyed."""
    return config.activation("hidden_activation", "gelu_pytorch_tanh")


def places(spec: ModelSpec) -> Places:
    """Where the tensors lie."""
    return gemma_places(spec)
