"""Blocks of GGUF tensors to float32.

The formulas of the quantised types come from the `gguf` package (numpy, MIT), imported when first needed; the plain
types and the two newest ones, which it cannot decode, are done here. Layouts: ggml-common.h of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wattwise_devices.errors import UnsupportedArchitecture
from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME

_PLAIN = {
    "f32": "<f4", "f16": "<f2", "f64": "<f8", "i8": "<i1", "i16": "<i2", "i32": "<i4", "i64": "<i8",
}  # fmt: skip
_PIECE_ELEMENTS = 1 << 20
_INTERMEDIATE = ("q8_1", "q8_k")  # activations inside matrix products; no file should hold one


def dequantize(blocks: np.ndarray, type_name: str) -> np.ndarray:
    """uint8 [bytes], whole blocks of `type_name`, as float32 [elements]. A new array, except that f32 may be a view."""
    if type_name in _PLAIN:
        with np.errstate(over="ignore", invalid="ignore"):  # f64 beyond float32 becomes infinity
            return blocks.view(_PLAIN[type_name]).astype(np.float32, copy=False)
    if type_name == "bf16":
        return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):  # scales in a hostile file may be infinite or not a number
        if type_name in _OWN:
            return _OWN[type_name](blocks)
        return _with_gguf(blocks, type_name)


def can_dequantize(type_name: str) -> bool:
    """Whether tensors of this type can be read as float32."""
    return type_name in TYPE_BY_NAME and type_name not in _INTERMEDIATE


def _q1_0(blocks: np.ndarray) -> np.ndarray:
    """128 signs, lowest bit first, times a float16 scale."""
    rows = blocks.reshape(-1, 18)
    scale = rows[:, :2].copy().view("<f2").astype(np.float32)
    bits = np.unpackbits(rows[:, 2:], axis=1, bitorder="little")
    return np.where(bits == 1, scale, -scale).reshape(-1)


def _q2_0(blocks: np.ndarray) -> np.ndarray:
    """64 two-bit codes, lowest first, minus one, times a float16 scale."""
    rows = blocks.reshape(-1, 18)
    scale = rows[:, :2].copy().view("<f2").astype(np.float32)
    codes = (rows[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8)) & 3
    return ((codes.reshape(len(rows), 64).astype(np.float32) - 1) * scale).reshape(-1)


_OWN: dict[str, Callable[[np.ndarray], np.ndarray]] = {"q1_0": _q1_0, "q2_0": _q2_0}


def _with_gguf(blocks: np.ndarray, type_name: str) -> np.ndarray:
    if not can_dequantize(type_name):
        raise UnsupportedArchitecture(
            f"tensors of type {type_name} cannot be read as numbers: it is a format of intermediate results. "
            "Convert the model again from its source."
        )
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    info = TYPE_BY_NAME[type_name]
    kind = GGMLQuantizationType(info.number)
    values = np.empty(len(blocks) // info.block_bytes * info.block, np.float32)
    step = max(1, _PIECE_ELEMENTS // info.block)  # in pieces, since its temporaries are several times the result
    for first in range(0, len(blocks) // info.block_bytes, step):
        piece = blocks[first * info.block_bytes : (first + step) * info.block_bytes]
        decoded = dequantize(piece.reshape(1, -1), kind).reshape(-1)
        values[first * info.block : first * info.block + decoded.size] = decoded
    return values
