"""What Llama-like architectures share: their config's sizes, their tensors' names, and where each weight lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattwise_convert.archs._config import MAX_COUNT, MAX_LAYERS, MAX_POSITIONS, Config
from wattwise_runtimes.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the checkpoint keeps a canonical tensor.

    name: without the prefix that differs from file to file ("model.", "transformer.", ...). first, of: the first
    row, and all rows of a tensor that several were fused into; of is 0 where it stands alone. transposed: stored as
    [in, out]. plus: added to every value (Gemma stores norm weights less 1).
    """

    name: str
    first: int = 0
    of: int = 0
    transposed: bool = False
    plus: float = 0.0


Places = Mapping[str, Place]

_OUTSIDE = {
    "token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head",
}  # fmt: skip
_IN_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def llama_places(spec: ModelSpec) -> Places:
    """Llama's names, which most architectures use."""
    return {name: Place(name=llama_name(name)) for name in spec.tensor_shapes()}


def llama_name(name: str, in_layer: Mapping[str, str] = _IN_LAYER) -> str:
    """Hugging Face's name of a canonical tensor."""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("blk."):
        _, layer, stem = stem.split(".", 2)
        return f"layers.{layer}.{in_layer[stem]}.{kind}"
    return f"{_OUTSIDE[stem]}.{kind}"


# Gemma puts a norm on both sides of each half of a layer, so its names differ.
GEMMA_IN_LAYER = _IN_LAYER | {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip


def gemma_places(spec: ModelSpec) -> Places:
    """Gemma's names; its norms are stored less 1."""
    return {
        name: Place(name=llama_name(name, GEMMA_IN_LAYER), plus=1.0 if name.endswith("norm.weight") else 0.0)
        for name in spec.tensor_shapes()
    }


def sizes(config: Config, **defaults: int) -> dict[str, Any]:
    """The fields of a ModelSpec that every Llama-like config has. defaults: by the config's own names."""
    config.refuse_features()

    def count(name: str, fallback: int | None = None, most: int | None = None) -> int:
        default = defaults.get(name, fallback)
        extra = {} if default is None else {"default": default}
        return config.count(name, **extra, **({} if most is None else {"most": most}))

    hidden, heads = count("hidden_size"), count("num_attention_heads")
    kv_heads = count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.fail("num_key_value_heads", kv_heads, f"a divisor of the {heads} heads")
    if config.get("head_dim", defaults.get("head_dim")) is None and hidden % heads:
        raise config.fail("num_attention_heads", heads, f"a divisor of the width {hidden}")
    vocab = count("vocab_size", most=MAX_COUNT)
    return {
        "layers": count("num_hidden_layers", most=MAX_LAYERS), "hidden": hidden, "heads": heads, "kv_heads": kv_heads,
        "head_dim": count("head_dim", hidden // heads, 1 << 14), "ffn": count("intermediate_size"),
        "vocab": vocab, "context": count("max_position_embeddings", most=MAX_POSITIONS), **tokens(config, vocab),
    }  # fmt: skip


def tokens(config: Config, vocab: int) -> dict[str, Any]:
    """Special tokens as the config gives them."""
    return {
        "bos_id": config.token_id("bos_token_id", vocab),
        "eos_ids": config.token_ids("eos_token_id", vocab),
        "pad_id": config.token_id("pad_token_id", vocab),
    }


def layer_types(config: Config, layers: int, default: list[bool]) -> tuple[bool, ...]:
    """Which layers have a sliding window: from `layer_types`, else the architecture's own rule."""
    value = config.get("layer_types")
    if value is None:
        return tuple(default)
    if not isinstance(value, list) or len(value) != layers:
        raise config.fail("layer_types", value, f"a list of {layers} names")
    for kind in value:
        if kind not in ("full_attention", "sliding_attention"):
            raise config.unsupported("layer_types", kind, "known are full_attention and sliding_attention")
    return tuple(kind == "sliding_attention" for kind in value)


def window(config: Config, sliding: tuple[bool, ...], size: int | None) -> dict[str, Any]:
    """The window fields of a spec; nothing where no layer slides."""
    if size is None or not any(sliding):
        return {}
    return {"sliding_window": size, "sliding_layers": () if all(sliding) else sliding}


def optional_window(config: Config, default: int | None = None) -> int | None:
    """`sliding_window`; null, where it is written out, means none."""
    if config.get("sliding_window", None if "sliding_window" in config.values else default) is None:
        return None
    return config.count("sliding_window", default, most=MAX_POSITIONS)
