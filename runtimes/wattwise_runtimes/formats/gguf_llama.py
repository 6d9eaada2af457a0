"""Whether llama.cpp can open a sound GGUF file without ending the process.

llama.cpp checks much of what a model file says with assertions, which abort. So what it would assert is checked here
first, and what cannot be judged here (unknown architectures, unknown keys of a known one) is refused. Every rule that
stands for a native crash was seen to be needed with llama-cpp-python 0.3.36; `tests/formats/test_gguf_llama.py` has
the list and tries it again where llama-cpp-python is installed. The vocabulary's rules are in `gguf_vocab`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.formats.gguf import GGUFFile
from wattwise_runtimes.formats.gguf_layout import Sizes, expected_tensors
from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME
from wattwise_runtimes.formats.gguf_vocab import check_vocabulary_fields

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MIN_ALIGNMENT = 32  # of tensors in memory
_NO_KERNEL = {"q8_1", "q8_k", "i8", "i16", "i32", "i64", "f64"}
MATRIX_TYPES = frozenset(TYPE_BY_NAME) - _NO_KERNEL
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")

_Check = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class _Key:
    """One metadata key of an architecture: the type that llama.cpp insists on and which values are safe."""

    type: str
    allowed: str
    ok: _Check


def _count(least: int, most: int) -> _Key:
    return _Key("uint32", f"{least} to {most}", lambda v: least <= v <= most)


_POSITIVE = _Key("float32", "a positive number", lambda v: math.isfinite(v) and v > 0)
_FINITE = _Key("float32", "a finite number", math.isfinite)
_EPSILON = _Key("float32", "0 to 1", lambda v: 0 <= v <= 1)

REQUIRED = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
_KEYS: dict[str, _Key] = {
    "block_count": _count(1, MAX_LAYERS),
    "context_length": _count(1, 1 << 28),
    "embedding_length": _count(1, 1 << 20),
    "feed_forward_length": _count(1, 1 << 22),
    "vocab_size": _count(1, 1 << 24),
    "attention.head_count": _count(1, 1 << 16),
    "attention.head_count_kv": _count(1, 1 << 16),
    "attention.key_length": _count(1, 1 << 16),
    "attention.value_length": _count(1, 1 << 16),
    "attention.sliding_window": _count(0, 1 << 28),
    "attention.layer_norm_rms_epsilon": _EPSILON,
    "attention.layer_norm_epsilon": _EPSILON,
    "attention.scale": _POSITIVE,
    "attn_logit_softcapping": _POSITIVE,
    "final_logit_softcapping": _POSITIVE,
    "rope.dimension_count": _count(2, 1 << 16),
    "rope.freq_base": _POSITIVE,
    "rope.freq_base_swa": _POSITIVE,
    "rope.scale_linear": _POSITIVE,
    "rope.scaling.type": _Key("string", f"one of {', '.join(ROPE_SCALINGS)}", lambda v: v in ROPE_SCALINGS),
    "rope.scaling.factor": _POSITIVE,
    "rope.scaling.attn_factor": _POSITIVE,
    "rope.scaling.original_context_length": _count(1, 1 << 28),
    "rope.scaling.finetuned": _Key("bool", "a bool", lambda v: True),
    "rope.scaling.yarn_log_multiplier": _FINITE,
    "rope.scaling.yarn_ext_factor": _FINITE,
    "rope.scaling.yarn_attn_factor": _FINITE,
    "rope.scaling.yarn_beta_fast": _FINITE,
    "rope.scaling.yarn_beta_slow": _FINITE,
    "use_parallel_residual": _Key("bool", "a bool", lambda v: True),
    "tensor_data_layout": _Key("string", "a name", lambda v: True),
    "expert_count": _count(0, 0),
    "expert_used_count": _count(0, 0),
}
_EPSILON_KEY = {"gpt2": "attention.layer_norm_epsilon"}
_WHOLE_HEAD_ROPE = ("llama", "qwen2", "qwen3")  # rotate all of a head, else an assertion fails
_SQUARE_QUERY = ("qwen2", "phi3", "gpt2")  # heads * head size is the embedding's width
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2")


def validate_for_llama(file: GGUFFile) -> None:
    """Refuse what llama.cpp would crash on: CorruptArtifact, or UnsupportedArchitecture for what is not known here."""
    arch = file.fields.get("general.architecture")
    if file.field_types.get("general.architecture") != "string":
        raise CorruptArtifact(file.path, "'general.architecture'", arch, "a string")
    if arch not in ARCHITECTURES:
        raise UnsupportedArchitecture(
            f"{file.path}: architecture {arch!r} is not known; known are {', '.join(ARCHITECTURES)}."
        )
    _check_keys(file, arch)
    tokens = check_vocabulary_fields(file, arch)
    _check_tensors(file, _sizes(file, arch, tokens))
    _check_placement(file)


def _check_keys(file: GGUFFile, arch: str) -> None:
    """Every key of the architecture must be known, of the right type and in range."""
    prefix = arch + "."
    for key, value in file.fields.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        if name == "attention.sliding_window_pattern":
            _check_pattern(file, key, value)
            continue
        rule = _KEYS.get(name)
        if rule is None:
            raise UnsupportedArchitecture(
                f"{file.path}: the key {key!r} is not known for this architecture; what it changes cannot be judged. "
                "Convert the model again with `wattwise convert`."
            )
        if file.field_types[key] != rule.type:
            raise CorruptArtifact(file.path, f"type of {key!r}", file.field_types[key], rule.type)
        if not rule.ok(value):
            raise CorruptArtifact(file.path, repr(key), value, rule.allowed)
    for name in (*REQUIRED, _EPSILON_KEY.get(arch, "attention.layer_norm_rms_epsilon")):
        if prefix + name not in file.fields:
            raise CorruptArtifact(file.path, repr(prefix + name), "missing", "present")


def _check_pattern(file: GGUFFile, key: str, value: Any) -> None:
    """One period for all layers, or a flag per layer. With a window, at least one layer must slide."""
    arch = key.split(".")[0]
    kind, layers = file.field_types[key], file.fields.get(f"{arch}.block_count")
    slides = arch == "gemma2" or file.fields.get(f"{arch}.attention.sliding_window", 0) != 0
    if kind == "uint32":
        least = 2 if slides else 1
        if not least <= value <= MAX_LAYERS:
            raise CorruptArtifact(file.path, repr(key), value, f"{least} to {MAX_LAYERS}")
    elif kind not in ("array[bool]", "array[uint32]", "array[int32]"):
        raise CorruptArtifact(file.path, f"type of {key!r}", kind, "uint32 or an array of flags")
    elif len(value) != layers or not np.isin(value, (0, 1)).all():
        raise CorruptArtifact(file.path, repr(key), value.tolist()[:8], f"{layers} flags, one per layer")
    elif slides and not value.any():
        raise CorruptArtifact(file.path, repr(key), value.tolist()[:8], "at least one sliding layer")


def _sizes(file: GGUFFile, arch: str, tokens: int) -> Sizes:
    """The sizes that the metadata claims, consistent with each other."""

    def key(name: str, default: int) -> int:
        return file.fields.get(f"{arch}.{name}", default)

    hidden, heads = key("embedding_length", 0), key("attention.head_count", 0)
    kv_heads = key("attention.head_count_kv", heads)
    head = key("attention.key_length", hidden // heads)
    value_head = key("attention.value_length", hidden // heads)
    rotated = key("rope.dimension_count", head)

    def fail(name: str, value: int, limit: str) -> CorruptArtifact:
        return CorruptArtifact(file.path, f"'{arch}.{name}'", value, limit)

    if heads % kv_heads:
        raise fail("attention.head_count_kv", kv_heads, f"a divisor of the {heads} heads")
    if head != value_head:
        raise fail("attention.value_length", value_head, f"{head}, the key length")
    if head < 1 or (arch in _SQUARE_QUERY and head * heads != hidden):
        raise fail("attention.head_count", heads, f"a divisor of the width {hidden}")
    if arch != "gpt2" and (rotated % 2 or rotated > head or (arch in _WHOLE_HEAD_ROPE and rotated != head)):
        limit = f"{head}, the head size" if arch in _WHOLE_HEAD_ROPE else f"even, at most the head size {head}"
        raise fail("rope.dimension_count", rotated, limit)
    if arch == "gemma2" and key("attention.sliding_window", 1) < 1:
        raise fail("attention.sliding_window", 0, "1 or more")
    return Sizes(
        arch=arch, layers=key("block_count", 0), hidden=hidden, ffn=key("feed_forward_length", 0), heads=heads,
        kv_heads=kv_heads, head=head, rotated=rotated, vocab=tokens, context=key("context_length", 0),
    )  # fmt: skip


def _check_tensors(file: GGUFFile, sizes: Sizes) -> None:
    """Exactly the tensors of the architecture, with its shapes and with types that have kernels."""
    required, optional = expected_tensors(sizes, frozenset(file.tensors))
    known: Mapping[str, tuple[int, ...]] = required | optional
    for name in required:
        if name not in file.tensors:
            raise CorruptArtifact(file.path, f"tensor {name!r}", "missing", f"shape {required[name]}")
    for name, tensor in file.tensors.items():
        if name not in known:
            raise UnsupportedArchitecture(
                f"{file.path}: the tensor {name!r} is not known for architecture {sizes.arch!r}. Convert the model "
                "again with `wattwise convert`."
            )
        if tensor.shape != known[name]:
            raise CorruptArtifact(file.path, f"shape of tensor {name!r}", tensor.shape, known[name])
        allowed = MATRIX_TYPES if len(tensor.shape) == 2 else {"f32"}
        if tensor.type not in allowed:
            raise CorruptArtifact(
                file.path, f"type of tensor {name!r}", tensor.type, f"one of {', '.join(sorted(allowed))}"
            )


def _check_placement(file: GGUFFile) -> None:
    """ggml wants the tensors of a file one after the other in the order of its directory, at multiples of 32."""
    if file.alignment % MIN_ALIGNMENT:
        raise CorruptArtifact(file.path, "'general.alignment'", file.alignment, f"a multiple of {MIN_ALIGNMENT}")
    ends: dict[int, int] = {}
    for tensor in file.tensors.values():
        wanted = ends.get(tensor.part, tensor.offset if tensor.part else file.data_offset)
        if tensor.offset != wanted:
            raise CorruptArtifact(
                file.parts[tensor.part], f"offset of tensor {tensor.name!r}", tensor.offset, f"{wanted}, the next place"
            )
        ends[tensor.part] = -(-(tensor.offset + tensor.nbytes) // file.alignment) * file.alignment
