"""Which GGUF type each tensor gets under a quantisation name, and which names there are.

Natively written: f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1. Vectors (norms, biases) and position embeddings stay f32,
as llama.cpp's kernels want them. The matrix that makes the logits (the head, or the embedding where both are one) is
q8_0 under the 4- and 5-bit names: it is read once per token and errs directly on the logits. llama.cpp's own tool
takes q6_k there, which only libllama can write and which not every row length allows.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattwise_devices.errors import ConvertError
from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME

NATIVE = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
_HEAD_Q8 = ("q4_0", "q4_1", "q5_0", "q5_1")
FALLBACK = "f16"  # for rows that no block fits into


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaType:
    """A name that libllama writes: its llama_ftype and roughly the bits per weight of the file."""

    file_type: int
    bits: float


# llama_ftype numbers of llama.h. Those left out need an importance matrix; see NEEDS_MATRIX.
LLAMA_TYPES: dict[str, LlamaType] = {
    name: LlamaType(file_type=number, bits=bits)
    for name, number, bits in (
        ("q2_k", 10, 3.2), ("q3_k_s", 11, 3.7), ("q3_k_m", 12, 4.0), ("q3_k_l", 13, 4.3), ("q4_k_s", 14, 4.7),
        ("q4_k_m", 15, 4.9), ("q5_k_s", 16, 5.6), ("q5_k_m", 17, 5.7), ("q6_k", 18, 6.6), ("iq4_nl", 25, 4.7),
        ("iq3_s", 26, 3.7), ("iq3_m", 27, 3.8), ("iq4_xs", 30, 4.5), ("tq1_0", 36, 2.2), ("tq2_0", 37, 2.5),
    )
}  # fmt: skip
_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "fp16": "f16", "fp32": "f32"}
NEEDS_MATRIX = (
    "q2_k_s", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs",
)  # fmt: skip
QUANTS = (*NATIVE, *LLAMA_TYPES)


def canonical_name(quant: str) -> str:
    """The quantisation's name as used here. Raises ConvertError for one that cannot be written."""
    name = _ALIASES.get(quant.lower(), quant.lower())
    if name in NEEDS_MATRIX:
        raise ConvertError(
            f"{name} needs an importance matrix (activations measured on a text), which this converter does not make. "
            f"Without one there are: {', '.join(QUANTS)}."
        )
    if name not in QUANTS:
        raise ConvertError(f"GGUF weights cannot be stored as {quant!r}; there are: {', '.join(QUANTS)}.")
    return name


def main_type(quant: str) -> str:
    """The tensor type that a quantisation is named after."""
    if quant in TYPE_BY_NAME:
        return quant
    return "iq3_s" if quant == "iq3_m" else quant[:-2]


def is_head(name: str, tied: bool) -> bool:
    """Whether this tensor makes the logits."""
    return name == ("token_embd.weight" if tied else "output.weight")


def type_for(name: str, shape: tuple[int, ...], quant: str, *, tied: bool) -> str:
    """The tensor's type under a native quantisation."""
    if len(shape) < 2 or name == "position_embd.weight":
        return "f32"
    wanted = "q8_0" if quant in _HEAD_Q8 and is_head(name, tied) else quant
    return wanted if shape[-1] % TYPE_BY_NAME[wanted].block == 0 else FALLBACK
