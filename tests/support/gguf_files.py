"""Tiny GGUF files in llama.cpp's layout, written with the `gguf` package from canonical weights.

Independent of the converter on purpose: it shares no code with it, so each checks the other. No tokenizer goes in:
the vocabulary is "no_vocab", ids only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants

from wattwise_runtimes.spec import ModelSpec, RopeSpec, llama3_factors

GGUF_NAMES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "phi3": "phi3", "gpt2": "gpt2",
}  # fmt: skip
_FUSED_QKV = ("phi3", "gpt2")


def write_tiny_gguf(
    path: Path, spec: ModelSpec, weights: Mapping[str, np.ndarray], quant: str = "f32", *, embedding: str | None = None
) -> Path:
    """Write a model. quant: type of the matrices ("f32", "f16", "q8_0", "q4_0", ...); norms and biases stay f32."""
    arch = GGUF_NAMES[spec.architecture]
    writer = gguf.GGUFWriter(path, arch)
    _write_fields(writer, arch, spec)
    for name, value in _lower(arch, spec, weights).items():
        wanted = (embedding or quant) if name == "token_embd.weight" else quant
        if value.ndim < 2 or name == "position_embd.weight":
            wanted = "f32"
        _add(writer, name, value, wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, value: np.ndarray, quant: str) -> None:
    value = np.ascontiguousarray(value, np.float32)
    if quant == "f32":
        writer.add_tensor(name, value)
    elif quant == "f16":
        writer.add_tensor(name, value.astype(np.float16))
    else:
        kind = GGMLQuantizationType[quant.upper()]
        writer.add_tensor(name, quants.quantize(value, kind), raw_dtype=kind)


def _write_fields(writer: gguf.GGUFWriter, arch: str, spec: ModelSpec) -> None:
    writer.add_block_count(spec.layers)
    writer.add_context_length(spec.context)
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(spec.ffn)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_vocab_size(spec.vocab)
    if spec.norm == "rms":
        writer.add_layer_norm_rms_eps(spec.norm_eps)
    else:
        writer.add_layer_norm_eps(spec.norm_eps)
    if spec.rope is not None:
        _write_rope(writer, arch, spec.rope)
    if spec.sliding_window is not None:
        writer.add_sliding_window(spec.sliding_window)
        if spec.sliding_layers:
            writer.add_array(f"{arch}.attention.sliding_window_pattern", [bool(s) for s in spec.sliding_layers])
    if spec.attn_softcap is not None:
        writer.add_attn_logit_softcapping(spec.attn_softcap)
    if spec.final_softcap is not None:
        writer.add_final_logit_softcapping(spec.final_softcap)
    writer.add_tokenizer_model("no_vocab")


def _write_rope(writer: gguf.GGUFWriter, arch: str, rope: RopeSpec) -> None:
    writer.add_rope_freq_base(rope.base)
    writer.add_rope_dimension_count(rope.dims)
    if rope.local_base is not None:
        writer.add_float32(f"{arch}.rope.freq_base_swa", rope.local_base)
    if rope.scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.factor)
    if rope.scaling == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        writer.add_rope_scaling_attn_factors(rope.attention_factor)


def _lower(arch: str, spec: ModelSpec, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Canonical tensors as llama.cpp wants them."""
    out: dict[str, np.ndarray] = {}
    rope = spec.rope
    if rope is not None and rope.scaling == "llama3":
        out["rope_freqs.weight"] = llama3_factors(rope).astype(np.float32)
    if rope is not None and rope.scaling == "longrope":
        out["rope_factors_long.weight"] = np.array(rope.long_factor, np.float32)
        out["rope_factors_short.weight"] = np.array(rope.short_factor, np.float32)
    renamed = dict(weights)
    if spec.attn_scale is not None:  # llama.cpp uses 1 / sqrt(head_dim): the difference goes into the queries
        where = "attn_q_norm.weight" if spec.qk_norm else "attn_q.weight"
        for i in range(spec.layers):
            renamed[f"blk.{i}.{where}"] = renamed[f"blk.{i}.{where}"] * spec.attn_scale * math.sqrt(spec.head_dim)
    for name, value in renamed.items():
        if arch == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            value = adjacent_pairs(value, spec.head_dim, rope.dims if rope else 0)
        out[name] = value
    if arch in _FUSED_QKV:
        for i in range(spec.layers):
            for kind in ("weight", "bias") if spec.qkv_bias else ("weight",):
                parts = [out.pop(f"blk.{i}.attn_{x}.{kind}") for x in "qkv"]
                out[f"blk.{i}.attn_qkv.{kind}"] = np.concatenate(parts)
    if arch == "phi3":
        for i in range(spec.layers):
            gate, up = out.pop(f"blk.{i}.ffn_gate.weight"), out[f"blk.{i}.ffn_up.weight"]
            out[f"blk.{i}.ffn_up.weight"] = np.concatenate([gate, up])
    return out


def adjacent_pairs(rows: np.ndarray, head_dim: int, dims: int) -> np.ndarray:
    """Rows of q or k from half-split RoPE order (i pairs with i + dims / 2) to adjacent pairs (2i with 2i + 1)."""
    order = np.arange(head_dim)
    order[0:dims:2] = np.arange(dims // 2)
    order[1:dims:2] = np.arange(dims // 2, dims)
    heads = rows.reshape(-1, head_dim, rows.shape[1])
    return heads[:, order].reshape(rows.shape)
