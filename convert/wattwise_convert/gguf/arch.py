"""What each GGUF architecture of llama.cpp computes, and the refusal of a ModelSpec that it would compute wrongly.

llama.cpp fixes most of a model's structure by its architecture name: activation, norms, which biases it reads, how it
scales scores. Facts of llama.cpp at llama-cpp-python 0.3.36 (`src/models/*.cpp`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wattwise_devices.errors import ConvertError, UnsupportedArchitecture
from wattwise_runtimes.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """One architecture. fixed: spec fields and the only value each may have; scores_by_width: the number of layers
    at which llama.cpp scales scores by 1 / sqrt(hidden / heads) instead of by head size."""

    name: str
    fixed: dict[str, Any]
    adjacent_rope: bool = False  # q and k rows in adjacent-pair order
    fused_qkv: bool = False
    fused_gate_up: bool = False
    whole_head_rope: bool = False
    square_query: bool = False
    rope_scalings: tuple[str, ...] = ("none", "linear")
    scores_by_width: int | None = None

    def score_scale(self, spec: ModelSpec) -> float:
        """The factor on q . k that llama.cpp applies by itself."""
        width = spec.hidden // spec.heads if spec.layers == self.scores_by_width else spec.head_dim
        return 1 / math.sqrt(width)


_RMS = {"norm": "rms", "gated_ffn": True, "attn_softcap": None, "final_softcap": None}
_PLAIN = {**_RMS, "activation": "silu", "post_norms": False}
_NO_BIAS = {"attn_out_bias": False, "ffn_bias": False}
_GEMMA = {
    "norm": "rms",
    "gated_ffn": True,
    "activation": "gelu_tanh",
    "post_norms": True,
    "qkv_bias": False,
    **_NO_BIAS,
}

_LLAMA = Arch(
    name="llama", fixed={**_PLAIN, "qk_norm": False}, adjacent_rope=True, whole_head_rope=True,
    rope_scalings=("none", "linear", "llama3", "longrope"),
)  # fmt: skip
ARCHS: dict[str, Arch] = {  # ModelSpec.architecture -> GGUF's
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Arch(
        name="qwen2", fixed={**_PLAIN, **_NO_BIAS, "qk_norm": False}, whole_head_rope=True, square_query=True
    ),
    "qwen3": Arch(name="qwen3", fixed={**_PLAIN, **_NO_BIAS, "qk_norm": True}, whole_head_rope=True),
    "gemma2": Arch(name="gemma2", fixed={**_GEMMA, "qk_norm": False, "tied_head": True}, scores_by_width=46),
    "gemma3_text": Arch(
        name="gemma3", fixed={**_GEMMA, "qk_norm": True, "attn_softcap": None}, scores_by_width=62
    ),
    "phi3": Arch(
        name="phi3", fixed={**_PLAIN, **_NO_BIAS, "qk_norm": False}, fused_qkv=True, fused_gate_up=True,
        square_query=True, rope_scalings=("none", "linear", "longrope"),
    ),
    "gpt2": Arch(
        name="gpt2",
        fixed={
            "norm": "layer", "activation": "gelu_tanh", "gated_ffn": False, "qkv_bias": True, "attn_out_bias": True,
            "ffn_bias": True, "qk_norm": False, "post_norms": False, "attn_softcap": None, "final_softcap": None,
        },
        fused_qkv=True, square_query=True,
    ),
}  # fmt: skip


def arch_for(spec: ModelSpec) -> Arch:
    """The GGUF architecture for a model. Raises where llama.cpp would compute something else."""
    arch = ARCHS.get(spec.architecture)
    if arch is None:
        raise UnsupportedArchitecture(
            f"the architecture {spec.architecture!r} cannot be written as GGUF; there are: {', '.join(ARCHS)}."
        )
    for field, wanted in arch.fixed.items():
        _require(arch, field, getattr(spec, field), wanted)
    if arch.square_query:
        _require(arch, "heads * head_dim", spec.heads * spec.head_dim, spec.hidden)
    gemma = arch.name in ("gemma2", "gemma3")
    if not math.isclose(spec.embed_scale, math.sqrt(spec.hidden) if gemma else 1.0, rel_tol=1e-5):
        _require(arch, "embed_scale", spec.embed_scale, "sqrt(hidden)" if gemma else 1.0)
    if gemma and any(spec.sliding_layers) and spec.sliding_window is None:
        _require(arch, "sliding_layers without sliding_window", True, False)
    if not gemma and spec.sliding_layers and not all(spec.sliding_layers):
        _require(arch, "sliding_layers", "some layers", "all layers or none")
    _check_rope(arch, spec)
    return arch


def _check_rope(arch: Arch, spec: ModelSpec) -> None:
    rope = spec.rope
    if rope is None or arch.name == "gpt2":
        _require(arch, "rope", rope is not None, arch.name != "gpt2")
        return
    if arch.whole_head_rope:
        _require(arch, "rope.dims", rope.dims, spec.head_dim)
    if rope.scaling not in arch.rope_scalings:
        _require(arch, "rope.scaling", rope.scaling, f"one of {', '.join(arch.rope_scalings)}")
    if arch.name != "gemma3":
        _require(arch, "rope.local_base", rope.local_base, None)
    if arch.name == "gemma3" and rope.scaling == "linear" and rope.local_base is None and spec.sliding_window:
        _require(arch, "rope.local_base with linear scaling", None, "given: sliding layers are not scaled")


def _require(arch: Arch, field: str, value: Any, wanted: Any) -> None:
    if value != wanted:
        raise ConvertError(
            f"llama.cpp's architecture {arch.name!r} has {field} = {wanted}, this model has {value}: it would compute "
            "something else. Write ONNX instead (--to onnx)."
        )
