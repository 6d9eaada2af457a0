"""Phi 3, 3.5 and 4 (dense; mini, medium, Phi-4-mini): q, k, v in one matrix, gate and up in another."""

from __future__ import annotations

from wattwise_convert.archs._common import Place, Places, llama_places, optional_window, sizes
from wattwise_convert.archs._config import Config
from wattwise_convert.archs._rope import rope_spec
from wattwise_runtimes.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    """What the config describes."""
    config.refuse_features(attention_bias=(False,), mlp_bias=(False,))
    base = sizes(config, max_position_embeddings=4096)
    return ModelSpec(
        architecture="phi3", **base, norm_eps=config.number("rms_norm_eps", 1e-5, most=1),
        activation=config.activation(), rope=rope_spec(config, base["head_dim"], partial=True),
        sliding_window=optional_window(config), tied_head=config.flag("tie_word_embeddings", False),
    )  # fmt: skip


def places(spec: ModelSpec) -> Places:
    """Where the tensors lie."""
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    fused = {
        "attn_q": ("self_attn.qkv_proj", 0, q + 2 * kv), "attn_k": ("self_attn.qkv_proj", q, q + 2 * kv),
        "attn_v": ("self_attn.qkv_proj", q + kv, q + 2 * kv), "ffn_gate": ("mlp.gate_up_proj", 0, 2 * spec.ffn),
        "ffn_up": ("mlp.gate_up_proj", spec.ffn, 2 * spec.ffn),
    }  # fmt: skip
    found = dict(llama_places(spec))
    for i in range(spec.layers):
        for part, (name, first, rows) in fused.items():
            found[f"blk.{i}.{part}.weight"] = Place(name=f"layers.{i}.{name}.weight", first=first, of=rows)
    return found
