"""Which tensors llama.cpp expects of each architecture, with their shapes (in numpy order, [out, in] for a matrix)."""

from __future__ import annotations

from dataclasses import dataclass

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of one model, from its metadata. head: size of one head; rotated: how much of it RoPE turns."""

    arch: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head: int
    rotated: int
    vocab: int
    context: int


def expected_tensors(s: Sizes, present: frozenset[str]) -> tuple[Shapes, Shapes]:
    """(required, optional). `present` decides between the fused and the separate form of q, k and v."""
    layer_norm = s.arch == "gpt2"
    required: Shapes = {"token_embd.weight": (s.vocab, s.hidden), "output_norm.weight": (s.hidden,)}
    optional: Shapes = {}
    if s.arch != "gemma2":
        optional["output.weight"] = (s.vocab, s.hidden)
    if s.arch == "qwen2":
        optional["output.bias"] = (s.vocab,)
    if layer_norm:
        required |= {"position_embd.weight": (s.context, s.hidden), "output_norm.bias": (s.hidden,)}
    if s.arch == "llama":
        optional["rope_freqs.weight"] = (s.rotated // 2,)
    if s.arch in ("llama", "phi3"):
        optional |= {f"rope_factors_{kind}.weight": (s.rotated // 2,) for kind in ("long", "short")}
    for i in range(s.layers):
        _add_attention(s, f"blk.{i}.", present, required, optional)
        _add_feed_forward(s, f"blk.{i}.", required, optional)
    return required, optional


def _add_attention(s: Sizes, block: str, present: frozenset[str], required: Shapes, optional: Shapes) -> None:
    q, kv = s.heads * s.head, s.kv_heads * s.head
    required |= {block + "attn_norm.weight": (s.hidden,), block + "attn_output.weight": (s.hidden, q)}
    if s.arch == "gpt2" or block + "attn_qkv.weight" in present:
        required[block + "attn_qkv.weight"] = (q + 2 * kv, s.hidden)
        optional[block + "attn_qkv.bias"] = (q + 2 * kv,)
    else:
        for name, rows in (("attn_q", q), ("attn_k", kv), ("attn_v", kv)):
            required[f"{block}{name}.weight"] = (rows, s.hidden)
            optional[f"{block}{name}.bias"] = (rows,)
    if s.arch == "gpt2":
        required |= {block + "attn_norm.bias": (s.hidden,), block + "attn_output.bias": (s.hidden,)}
        required[block + "attn_qkv.bias"] = optional.pop(block + "attn_qkv.bias")
    if s.arch == "llama":
        optional[block + "attn_output.bias"] = (s.hidden,)
    if s.arch in ("qwen3", "gemma3"):
        required |= {block + "attn_q_norm.weight": (s.head,), block + "attn_k_norm.weight": (s.head,)}
    if s.arch in ("gemma2", "gemma3"):
        required |= {block + "post_attention_norm.weight": (s.hidden,), block + "post_ffw_norm.weight": (s.hidden,)}


def _add_feed_forward(s: Sizes, block: str, required: Shapes, optional: Shapes) -> None:
    up = 2 * s.ffn if s.arch == "phi3" else s.ffn  # phi3 keeps gate and up in one matrix
    required |= {
        block + "ffn_norm.weight": (s.hidden,),
        block + "ffn_up.weight": (up, s.hidden),
        block + "ffn_down.weight": (s.hidden, s.ffn),
    }
    biases = {block + "ffn_up.bias": (up,), block + "ffn_down.bias": (s.hidden,)}
    if s.arch == "gpt2":
        required |= {block + "ffn_norm.bias": (s.hidden,)} | biases
    elif s.arch != "phi3":
        required[block + "ffn_gate.weight"] = (s.ffn, s.hidden)
    if s.arch == "llama":
        optional |= {block + "ffn_gate.bias": (s.ffn,)} | biases
