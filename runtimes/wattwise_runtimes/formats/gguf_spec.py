"""ModelSpec and canonical weights from a GGUF file, for the planner, the converter and the reference engine.

Understands files of llama.cpp's own converter and of ours, for the architectures below. Undone here: llama's row order
of q and k, fused qkv and gate_up tensors, RoPE factors as tensors. Whether llama.cpp would survive the file is
judged in `gguf_llama`. Key names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.formats.gguf import GGUFFile
from wattwise_runtimes.formats.gguf_quants import can_dequantize
from wattwise_runtimes.formats.gguf_rows import ReadRows, half_split_order, reordered, shifted
from wattwise_runtimes.formats.gguf_types import TENSOR_TYPES
from wattwise_runtimes.spec import ModelSpec, RopeSpec, llama3_factors

# GGUF architecture -> ours
ARCHITECTURES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text",
    "phi3": "phi3", "gpt2": "gpt2",
}  # fmt: skip
FACTOR_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_PATTERNS = {"gemma2": 2, "gemma3": 6}  # every n-th layer is global where the file does not say
_LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, which scale scores by width instead of head size


@dataclass(frozen=True, slots=True)
class CanonicalTensor:
    """One weight of a GGUF file in canonical form. dtype: how it is stored. read_rows gives float32."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read_rows: ReadRows


class _Fields:
    """Typed access to the metadata of one architecture."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.arch = self._general("general.architecture")
        if self.arch not in ARCHITECTURES:
            raise UnsupportedArchitecture(
                f"{file.path}: architecture {self.arch!r} is not known; known are {', '.join(ARCHITECTURES)}."
            )

    def _general(self, key: str) -> str:
        value = self.file.fields.get(key)
        if not isinstance(value, str):
            raise CorruptArtifact(self.file.path, repr(key), value, "a string")
        return value

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A field of the architecture, or the default where it is missing."""
        key = f"{self.arch}.{name}"
        value = self.file.fields.get(key, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            raise CorruptArtifact(self.file.path, repr(key), value, f"of type {kind}")
        return value

    def count(self, name: str, default: int | None = None, most: int = 1 << 28) -> int:
        """A size of at least 1."""
        value = self.get(name, int, default)
        if value is None or not 1 <= value <= most:
            raise CorruptArtifact(self.file.path, f"'{self.arch}.{name}'", value, f"1 to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float | None:
        """A positive number."""
        value = self.get(name, (int, float), default)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise CorruptArtifact(self.file.path, f"'{self.arch}.{name}'", value, "a positive number")
        return value if value is None else _shortest(value)


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def spec_from_gguf(file: GGUFFile) -> ModelSpec:
    """What the model in a GGUF file is."""
    f = _Fields(file)
    tensors = file.tensors
    experts = f.get("expert_count", int, 0)
    if experts:
        raise UnsupportedArchitecture(f"{file.path}: '{f.arch}.expert_count' is {experts}; experts are not supported.")
    if "token_embd.weight" not in tensors:
        raise CorruptArtifact(file.path, "tensor 'token_embd.weight'", "missing", "present (is it a vocabulary only?)")
    hidden, heads = f.count("embedding_length"), f.count("attention.head_count", most=1 << 16)
    kv_heads = f.count("attention.head_count_kv", heads, 1 << 16)
    layers = f.count("block_count", most=4096)
    head_dim = f.count("attention.key_length", max(1, hidden // heads), 1 << 16)
    if f.count("attention.value_length", head_dim, 1 << 16) != head_dim or heads % kv_heads:
        raise CorruptArtifact(
            file.path, "value length, heads and KV heads", (head_dim, heads, kv_heads), "equal lengths; KV heads divide"
        )
    window = f.get("attention.sliding_window", int, 4096 if f.arch == "gemma2" else 0)
    gpt2, gemma = f.arch == "gpt2", f.arch in _PATTERNS
    epsilon = "attention.layer_norm_epsilon" if gpt2 else "attention.layer_norm_rms_epsilon"
    return ModelSpec(
        architecture=ARCHITECTURES[f.arch],
        layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        ffn=f.count("feed_forward_length"), vocab=tensors["token_embd.weight"].shape[0],
        context=f.count("context_length"),
        norm="layer" if gpt2 else "rms",
        norm_eps=_epsilon(f, epsilon),
        activation="gelu_tanh" if gpt2 or gemma else "silu",
        gated_ffn=not gpt2,
        rope=None if gpt2 else _rope(f, head_dim),
        qkv_bias="blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors,
        attn_out_bias="blk.0.attn_output.bias" in tensors,
        ffn_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        post_norms="blk.0.post_attention_norm.weight" in tensors,
        attn_scale=1 / math.sqrt(hidden // heads) if layers == _LARGEST.get(f.arch) else None,
        attn_softcap=f.number("attn_logit_softcapping", 50.0) if f.arch == "gemma2" else None,
        final_softcap=_final_softcap(f),
        embed_scale=math.sqrt(hidden) if gemma else 1.0,
        tied_head="output.weight" not in tensors,
        sliding_window=window or None,
        sliding_layers=_sliding_layers(f, layers) if window and gemma else (),
        **_tokens(file),
    )  # fmt: skip


def _epsilon(f: _Fields, name: str) -> float:
    value = f.get(name, (int, float))
    if value is None or not 0 <= value <= 1:
        raise CorruptArtifact(f.file.path, f"'{f.arch}.{name}'", value, "0 to 1")
    return _shortest(value)


def _final_softcap(f: _Fields) -> float | None:
    if f.arch == "gemma2":
        return f.number("final_logit_softcapping", 30.0)
    return f.number("final_logit_softcapping") if f.arch == "gemma3" else None


def _sliding_layers(f: _Fields, layers: int) -> tuple[bool, ...]:
    """Which layers slide: listed one by one, or all but every n-th."""
    key = f"{f.arch}.attention.sliding_window_pattern"
    value = f.file.fields.get(key, _PATTERNS[f.arch])
    if isinstance(value, np.ndarray):
        if len(value) != layers:
            raise CorruptArtifact(f.file.path, f"items in {key!r}", len(value), f"{layers}, one per layer")
        return tuple(bool(v) for v in value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 4096:
        raise CorruptArtifact(f.file.path, repr(key), value, "1 to 4096, or a flag per layer")
    return tuple(i % value < value - 1 for i in range(layers))


def _rope(f: _Fields, head_dim: int) -> RopeSpec:
    """Rotary embedding from keys and factor tensors."""
    file = f.file
    dims = f.count("rope.dimension_count", head_dim, head_dim)
    if dims % 2:
        raise CorruptArtifact(file.path, f"'{f.arch}.rope.dimension_count'", dims, "an even number")
    kind = f.get("rope.scaling.type", str, "linear")
    if kind not in ("none", "linear", "longrope"):
        raise UnsupportedArchitecture(
            f"{file.path}: '{f.arch}.rope.scaling.type' is {kind!r}; known are none, linear and longrope."
        )
    factor = f.number("rope.scaling.factor") or f.number("rope.scale_linear") or 1.0
    base: dict[str, Any] = {"dims": dims, "base": f.number("rope.freq_base", 10000.0)}
    if f.arch == "gemma3":
        base["local_base"] = f.number("rope.freq_base_swa", 10000.0)
    original = f.count("rope.scaling.original_context_length", f.count("context_length"))
    factors = {name: _factors(file, name, dims) for name in FACTOR_TENSORS if name in file.tensors}
    if factors and kind == "linear" and factor != 1.0:
        raise UnsupportedArchitecture(f"{file.path}: linear RoPE scaling by {factor} together with factor tensors.")
    attention_factor = f.number("rope.scaling.attn_factor", 1.0) or 1.0
    if "rope_freqs.weight" in factors:
        return _from_factors(base, factors["rope_freqs.weight"], original, attention_factor)
    if factors:
        if len(factors) != 2:
            raise CorruptArtifact(file.path, "RoPE factor tensors", sorted(factors), "the long and the short ones")
        return RopeSpec(
            **base, scaling="longrope", original_context=original, attention_factor=attention_factor,
            long_factor=factors["rope_factors_long.weight"], short_factor=factors["rope_factors_short.weight"],
        )  # fmt: skip
    if attention_factor != 1.0:
        base["attention_factor"] = attention_factor
    if kind == "linear" and factor != 1.0:
        return RopeSpec(**base, scaling="linear", factor=factor)
    return RopeSpec(**base)


def _factors(file: GGUFFile, name: str, dims: int) -> tuple[float, ...]:
    tensor = file.tensors[name]
    if tensor.shape != (dims // 2,) or tensor.type != "f32":
        raise CorruptArtifact(
            file.path, f"tensor {name!r}", (tensor.shape, tensor.type), f"f32 of shape ({dims // 2},)"
        )
    values = file.read_rows(name)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise CorruptArtifact(file.path, f"values of tensor {name!r}", float(values.min()), "positive numbers")
    return tuple(float(v) for v in values)


def _from_factors(base: dict[str, Any], factors: tuple[float, ...], original: int, attention_factor: float) -> RopeSpec:
    """Frequency divisors that hold for any context: Llama 3.1's rule where they fit it, else as they are."""
    stored = np.array(factors, np.float32)
    for context in (8192, original, *(1 << k for k in range(5, 21))):  # Llama 3.1 to 3.3 were stretched from 8192
        rule = RopeSpec(
            **base, scaling="llama3", factor=float(stored.max()), low_freq_factor=1.0, high_freq_factor=4.0,
            original_context=context, attention_factor=attention_factor,
        )  # fmt: skip
        if stored.max() > 1 and np.allclose(llama3_factors(rule), stored, rtol=1e-6, atol=0):
            return rule
    return RopeSpec(
        **base, scaling="longrope", long_factor=factors, short_factor=factors, original_context=original,
        attention_factor=attention_factor,
    )  # fmt: skip


def _tokens(file: GGUFFile) -> dict[str, Any]:
    """Special tokens, template and name."""
    from wattwise_runtimes.text.gguf_vocab import _BOS_BY_DEFAULT  # llama.cpp's list, kept in one place

    fields, prefix = file.fields, "tokenizer.ggml."
    spm = fields.get(prefix + "model") == "llama"

    def token(name: str, default: int | None = None) -> int | None:
        value = fields.get(f"{prefix}{name}_token_id", default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise CorruptArtifact(file.path, f"'{prefix}{name}_token_id'", value, "a token id")
        return value

    ends = [token("eos", 2 if spm else None), token("eot"), token("eom")]
    more = fields.get("wattwise.eog_ids")
    if isinstance(more, np.ndarray):
        ends += [int(i) for i in more]
    template, name = fields.get("tokenizer.chat_template"), fields.get("general.name")
    return {
        "bos_id": token("bos", 1 if spm else None),
        "eos_ids": tuple(dict.fromkeys(i for i in ends if i is not None)),
        "pad_id": token("padding"),
        "add_bos": fields.get(prefix + "add_bos_token", spm or fields.get(prefix + "pre") in _BOS_BY_DEFAULT) is True,
        "chat_template": template if isinstance(template, str) else None,
        "name": name if isinstance(name, str) else file.path.stem,
    }


def canonical_tensors(file: GGUFFile, spec: ModelSpec) -> dict[str, CanonicalTensor]:
    """Every weight of `spec` in canonical form. Raises for tensors that are missing, misshaped or left over."""
    unused = set(file.tensors) - set(FACTOR_TENSORS)
    out: dict[str, CanonicalTensor] = {}
    for name, shape in spec.tensor_shapes().items():
        stored, first_row, rows = _place(file, spec, name, shape)
        if stored not in file.tensors:
            raise CorruptArtifact(file.path, f"tensor {stored!r}", "missing", f"shape {shape}")
        tensor = file.tensors[stored]
        if tensor.shape != (rows, *shape[1:]):
            raise CorruptArtifact(file.path, f"shape of tensor {stored!r}", tensor.shape, (rows, *shape[1:]))
        if not can_dequantize(tensor.type):
            raise UnsupportedArchitecture(f"{file.path}: tensor {stored!r} has type {tensor.type}, which is not known.")
        unused.discard(stored)
        out[name] = CanonicalTensor(name, shape, tensor.type, _reader(file, spec, name, stored, first_row))
    if unused:
        raise UnsupportedArchitecture(
            f"{file.path}: the tensor {min(unused)!r} is not known for architecture {spec.architecture!r}."
        )
    return out


def _place(file: GGUFFile, spec: ModelSpec, name: str, shape: tuple[int, ...]) -> tuple[str, int, int]:
    """(stored tensor, first row in it, its rows) of a canonical tensor."""
    q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    for part, first in (("attn_q.", 0), ("attn_k.", q), ("attn_v.", q + kv)):
        if part in name:
            fused = name.replace(part, "attn_qkv.")
            if fused in file.tensors:
                return fused, first, q + 2 * kv
    if spec.architecture == "phi3" and (".ffn_gate." in name or ".ffn_up." in name):
        return name.replace("ffn_gate", "ffn_up"), spec.ffn if ".ffn_up." in name else 0, 2 * spec.ffn
    return name, 0, shape[0]


def _reader(file: GGUFFile, spec: ModelSpec, name: str, stored: str, first_row: int) -> ReadRows:
    def read(start: int, stop: int) -> np.ndarray:
        return file.read_rows(stored, start, stop)

    rows = shifted(read, first_row) if first_row else read
    if spec.architecture in ("llama", "mistral") and (".attn_q." in name or ".attn_k." in name):
        return reordered(rows, half_split_order(spec.head_dim))
    return rows


_FILE_TYPES = {  # general.file_type: llama_ftype of llama.h
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s",
    12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k", 19: "iq2_xxs",
    20: "iq2_xs", 21: "q2_k_s", 22: "iq3_xs", 23: "iq3_xxs", 24: "iq1_s", 25: "iq4_nl", 26: "iq3_s", 27: "iq3_m",
    28: "iq2_s", 29: "iq2_m", 30: "iq4_xs", 31: "iq1_m", 32: "bf16", 36: "tq1_0", 37: "tq2_0", 38: "mxfp4",
}  # fmt: skip
FILE_TYPE_BY_NAME: Mapping[str, int] = {name: number for number, name in _FILE_TYPES.items()}


def quant_name(file: GGUFFile) -> str:
    """How the weights are stored: what the file calls itself, else the type that holds most bytes."""
    named = file.fields.get("general.file_type")
    if isinstance(named, int) and named in _FILE_TYPES:
        return _FILE_TYPES[named]
    sizes: dict[str, int] = dict.fromkeys((t.name for t in TENSOR_TYPES.values()), 0)
    for tensor in file.tensors.values():
        sizes[tensor.type] += tensor.nbytes
    return max(sizes, key=lambda kind: sizes[kind]) if file.tensors else ""
