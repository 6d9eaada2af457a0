"""Gemma 3, text part: as Gemma 2 with norms on q and k, no soft caps, and two RoPE bases.

Reads the configs of transformers 4 and 5 and those of the first release, which name the window
`sliding_window_attention_size` and list the pattern of one period.
"""

from __future__ import annotations

import dataclasses
import math

from wattwise_convert.archs._common import Places, gemma_places, layer_types, sizes, window
from wattwise_convert.archs._config import MAX_LAYERS, MAX_POSITIONS, Config
from wattwise_convert.archs._rope import from_parameters, rope_spec
from wattwise_convert.archs.gemma2 import gemma_activation
from wattwise_runtimes.spec import ModelSpec, RopeSpec

_DEFAULTS = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
}  # fmt: skip


def spec(config: Config) -> ModelSpec:
    """What the config describes."""
    config.refuse_features(attention_bias=(False,), mlp_bias=(False,))
    base = sizes(config, **_DEFAULTS)
    sliding = layer_types(config, base["layers"], _pattern(config, base["layers"]))
    older = config.count("sliding_window_attention_size", 4096, most=MAX_POSITIONS)
    return ModelSpec(
        architecture="gemma3_text", **base, norm_eps=config.number("rms_norm_eps", 1e-6, most=1),
        activation=gemma_activation(config), rope=_rope(config, base["head_dim"]), qk_norm=True, post_norms=True,
        attn_scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
        attn_softcap=config.optional_number("attn_logit_softcapping", None),
        final_softcap=config.optional_number("final_logit_softcapping", None), embed_scale=math.sqrt(base["hidden"]),
        tied_head=config.flag("tie_word_embeddings", True),
        **window(config, sliding, config.count("sliding_window", older, most=MAX_POSITIONS)),
    )  # fmt: skip


def _pattern(config: Config, layers: int) -> list[bool]:
    """Every n-th layer is global."""
    listed = config.get("global_local_attention_pattern")
    if listed is not None:
        kinds = {"SLIDING_LOCAL": True, "GLOBAL": False}
        if not isinstance(listed, list) or not listed or not all(isinstance(k, str) and k in kinds for k in listed):
            raise config.fail("global_local_attention_pattern", listed, f"a list of {' and '.join(kinds)}")
        return [kinds[listed[i % len(listed)]] for i in range(layers)]
    name = "sliding_window_pattern" if config.get("sliding_window_pattern") else "_sliding_window_pattern"
    period = config.count(name, 6, most=MAX_LAYERS)
    return [(i + 1) % period != 0 for i in range(layers)]


def _rope(config: Config, head_dim: int) -> RopeSpec:
    """The global layers' embedding with the base of the sliding ones, which are never scaled."""
    both = config.part("rope_parameters")
    if both is None or both.part("full_attention") is None:
        spec = rope_spec(config, head_dim, theta=1e6)
        return dataclasses.replace(spec, local_base=config.number("rope_local_base_freq", 1e4))
    nothing = Config({}, config.path)
    spec = from_parameters(nothing, both.part("full_attention") or nothing, head_dim, theta=1e6)
    local = from_parameters(nothing, both.part("sliding_attention") or nothing, head_dim, theta=1e4)
    if local.scaling != "none":
        raise both.unsupported("sliding_attention", local.scaling, "sliding layers are known without scaling only")
    return dataclasses.replace(spec, local_base=local.base)


def places(spec: ModelSpec) -> Places:
    """Where the tensors lie."""
    return gemma_places(spec)
