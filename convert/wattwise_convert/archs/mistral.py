"""Mistral 7B and its kin: Llama's layout, with a sliding window in the first release."""

from __future__ import annotations

from wattwise_convert.archs._common import optional_window, sizes
from wattwise_convert.archs._config import Config
from wattwise_convert.archs._rope import rope_spec
from wattwise_runtimes.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    """What the config describes."""
    config.refuse_features(attention_bias=(False,), mlp_bias=(False,), llama_4_scaling=(None,))
    base = sizes(config, max_position_embeddings=131072, num_key_value_heads=8)
    return ModelSpec(
        architecture="mistral", **base, norm_eps=config.number("rms_norm_eps", 1e-6, most=1),
        activation=config.activation(), rope=rope_spec(config, base["head_dim"]),
        sliding_window=optional_window(config, 4096), tied_head=config.flag("tie_word_embeddings", False),
    )  # fmt: skip
