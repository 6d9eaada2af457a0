"""ModelSpec: everything about a model but its weights and its vocabulary, in one frozen value.

It is read once, from any format, by the readers in `formats/` and in the converter; nothing else in the
program looks at raw metadata. The maths that the fields stand for is written down once, in numpy, in
`engines/reference`; the GGUF and ONNX lowerings must give the same logits.

Conventions of a wattwise checkpoint ("canonical form"), whatever file it came from:

- tensor names are those of GGUF: `token_embd.weight`, `blk.3.attn_q.weight`, `output_norm.weight`, ...;
- a matrix has shape [out, in] and is applied as y = x @ W.T + b;
- q, k and v are three tensors, gate and up are two (fused source tensors are split on reading);
- rows of q and k are in half-split ("neox") RoPE order: dimension i pairs with i + rope.dims / 2;
- norm weights are effective multipliers (Gemma's stored `w` means `1 + w`; the 1 is already added).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864) and its extensions.

    base: theta of the frequencies. dims: how many leading dimensions of a head are rotated.
    scaling: how frequencies change for long contexts:
      "none"; "linear" (divide by factor); "llama3" (by wavelength, see transformers' llama3 rule);
      "longrope" (per-dimension short/long factors, chosen by context length against original_context).
    attention_factor: multiplies cos and sin (LongRoPE's magnitude correction); 1.0 otherwise.
    local_base: base of the sliding-window layers where it differs (Gemma 3); they are never scaled.
    """

    base: float = 10000.0
    dims: int
    scaling: Literal["none", "linear", "llama3", "longrope"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    attention_factor: float = 1.0
    local_base: float | None = None

    def inverse_frequencies(self, *, context: int, local: bool = False) -> np.ndarray:
        """Angle per position of each rotated pair, float64, shape [dims / 2].

        context: tokens the engine is loaded for (LongRoPE takes its long factors beyond original_context).
        local: a sliding-window layer of a model with `local_base`.
        """
        exponents = np.arange(0, self.dims, 2, dtype=np.float64) / self.dims
        if local and self.local_base is not None:
            return self.local_base**-exponents
        inv = self.base**-exponents
        if self.scaling == "linear":
            return inv / self.factor
        if self.scaling == "llama3":
            return inv / llama3_factors(self)
        if self.scaling == "longrope":
            return inv / np.asarray(self.long_or_short(context), dtype=np.float64)
        return inv

    def long_or_short(self, context: int) -> tuple[float, ...]:
        """LongRoPE's factors for an engine loaded with `context` tokens."""
        return self.long_factor if context > self.original_context else self.short_factor


def llama3_factors(rope: RopeSpec) -> np.ndarray:
    """Divisors of the frequencies under Llama 3.1's rule, float64, shape [dims / 2].

    Wavelengths shorter than original_context / high_freq_factor keep their frequency, those longer than
    original_context / low_freq_factor are divided by `factor`, those between are interpolated.
    """
    exponents = np.arange(0, rope.dims, 2, dtype=np.float64) / rope.dims
    wavelength = 2 * math.pi * rope.base**exponents
    low = rope.original_context / rope.low_freq_factor
    high = rope.original_context / rope.high_freq_factor
    smooth = (rope.original_context / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = 1.0 / ((1 - smooth) / rope.factor + smooth)
    return np.where(wavelength < high, 1.0, np.where(wavelength > low, rope.factor, between))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One decoder-only transformer.

    Sizes are counts: `hidden` is the width of the residual stream, `ffn` of the feed-forward,
    `context` the largest position the model was made for. A query head h reads KV head h // (heads / kv_heads).
    """

    architecture: str  # the name of a file in wattwise_convert/archs: llama, mistral, qwen2, gemma3_text, ...
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int

    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"  # of the feed-forward
    gated_ffn: bool = True  # down(act(gate(x)) * up(x)), else down(act(up(x)))
    rope: RopeSpec | None = None  # None: learned positions (`position_embd.weight`)
    qkv_bias: bool = False
    attn_out_bias: bool = False
    ffn_bias: bool = False
    qk_norm: bool = False  # RMSNorm over each head of q and k before RoPE
    post_norms: bool = False  # further norms after attention and feed-forward, before the residual (Gemma)
    attn_scale: float | None = None  # None: 1 / sqrt(head_dim)
    attn_softcap: float | None = None  # cap * tanh(scores / cap)
    final_softcap: float | None = None  # the same on the logits
    embed_scale: float = 1.0  # multiplies the token embedding (Gemma: sqrt(hidden))
    tied_head: bool = False
    sliding_window: int | None = None  # tokens a sliding layer sees, itself included
    sliding_layers: tuple[bool, ...] = ()  # per layer; empty: all layers slide if sliding_window is set

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # every id that ends a reply, from config, generation_config and tokenizer
    pad_id: int | None = None
    add_bos: bool = False  # the tokenizer puts BOS in front
    chat_template: str | None = None
    name: str = ""

    @property
    def scale(self) -> float:
        """Factor on q . k before the softmax."""
        return self.attn_scale if self.attn_scale is not None else 1.0 / math.sqrt(self.head_dim)

    def is_sliding(self, layer: int) -> bool:
        """Whether this layer attends only to the last `sliding_window` positions."""
        if self.sliding_window is None:
            return False
        return self.sliding_layers[layer] if self.sliding_layers else True

    def kv_row_elements(self) -> int:
        """Elements that one token adds to the KV cache over all layers (keys and values together)."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape of every tensor that a checkpoint of this spec must hold, and no other."""
        q, kv, h, f = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden, self.ffn
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.vocab, h)}
        if self.rope is None:
            shapes["position_embd.weight"] = (self.context, h)

        def norm(name: str, width: int = h) -> None:
            shapes[f"{name}.weight"] = (width,)
            if self.norm == "layer":
                shapes[f"{name}.bias"] = (width,)

        def linear(name: str, rows: int, columns: int, bias: bool) -> None:
            shapes[f"{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{name}.bias"] = (rows,)

        for i in range(self.layers):
            b = f"blk.{i}."
            norm(b + "attn_norm")
            linear(b + "attn_q", q, h, self.qkv_bias)
            linear(b + "attn_k", kv, h, self.qkv_bias)
            linear(b + "attn_v", kv, h, self.qkv_bias)
            if self.qk_norm:
                shapes[b + "attn_q_norm.weight"] = (self.head_dim,)
                shapes[b + "attn_k_norm.weight"] = (self.head_dim,)
            linear(b + "attn_output", h, q, self.attn_out_bias)
            if self.post_norms:
                norm(b + "post_attention_norm")
            norm(b + "ffn_norm")
            if self.gated_ffn:
                linear(b + "ffn_gate", f, h, self.ffn_bias)
            linear(b + "ffn_up", f, h, self.ffn_bias)
            linear(b + "ffn_down", h, f, self.ffn_bias)
            if self.post_norms:
                norm(b + "post_ffw_norm")
        norm("output_norm")
        if not self.tied_head:
            shapes["output.weight"] = (self.vocab, h)
        return shapes

    def parameters(self) -> int:
        """Weights of the model, the tied head counted once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` output and for fingerprints."""
        return dataclasses.asdict(self)
