"""GPT-2: learned positions, LayerNorm, biases everywhere, and matrices stored as [in, out]."""

from __future__ import annotations

from typing import Any

from wattwise_convert.archs._common import Place, Places, tokens
from wattwise_convert.archs._config import MAX_COUNT, MAX_LAYERS, Config
from wattwise_runtimes.spec import ModelSpec

_OUTSIDE = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "ln_1", "attn_output": "attn.c_proj", "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}  # fmt: skip


def spec(config: Config) -> ModelSpec:
    """What the config describes."""
    config.refuse_features(scale_attn_weights=(True,), scale_attn_by_inverse_layer_idx=(False,))
    hidden, heads = _count(config, "n_embd", "hidden_size"), _count(config, "n_head", "num_attention_heads")
    if hidden % heads:
        raise config.fail("n_head", heads, f"a divisor of the width {hidden}")
    vocab = config.count("vocab_size", most=MAX_COUNT)
    return ModelSpec(
        architecture="gpt2", layers=_count(config, "n_layer", "num_hidden_layers", MAX_LAYERS), hidden=hidden,
        heads=heads, kv_heads=heads, head_dim=hidden // heads, ffn=config.count("n_inner", 4 * hidden, most=1 << 22),
        vocab=vocab, context=_count(config, "n_positions", "max_position_embeddings"), norm="layer",
        norm_eps=config.number("layer_norm_epsilon", 1e-5, most=1),
        activation=config.activation("activation_function", "gelu_new"), gated_ffn=False, qkv_bias=True,
        attn_out_bias=True, ffn_bias=True, tied_head=config.flag("tie_word_embeddings", True), **tokens(config, vocab),
    )  # fmt: skip


def _count(config: Config, name: str, newer: str, most: int | None = None) -> int:
    """GPT-2's own name of a size, or the common one."""
    limits: dict[str, Any] = {} if most is None else {"most": most}
    return config.count(name if config.get(name) is not None else newer, **limits)


def places(spec: ModelSpec) -> Places:
    """Where the tensors lie."""
    return {name: _place(spec, name) for name in spec.tensor_shapes()}


def _place(spec: ModelSpec, name: str) -> Place:
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("blk."):
        return Place(name=f"{_OUTSIDE[stem]}.{kind}")
    _, layer, stem = stem.split(".", 2)
    matrix = kind == "weight" and not stem.endswith("norm")
    if stem in ("attn_q", "attn_k", "attn_v"):
        part = ("attn_q", "attn_k", "attn_v").index(stem)
        return Place(
            name=f"h.{layer}.attn.c_attn.{kind}", first=part * spec.hidden, of=3 * spec.hidden, transposed=matrix
        )
    return Place(name=f"h.{layer}.{_IN_LAYER[stem]}.{kind}", transposed=matrix)
