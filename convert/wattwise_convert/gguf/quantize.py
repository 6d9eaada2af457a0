"""GGUF's simple block types by numpy, bit for bit what ggml's reference quantiser writes.

A block is 32 weights of one row with one f16 scale: symmetric (q8_0, q4_0, q5_0: the weight of largest magnitude
becomes the last code, so the scale may be negative) or with a minimum (q4_1, q5_1). All arithmetic is float32, as in
C without fused multiply-add. Layouts: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and ggml-common.h.
Not here: k- and i-quants, which libllama writes (see `libllama`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BLOCK = 32
_SLICE_ELEMENTS = 1 << 18  # worked on at a time: 1 MiB of float32 stays in the cache
_F16_MAX = 65504.0


def encode(rows: np.ndarray, type_name: str) -> np.ndarray:
    """float32 values as the bytes of this type, uint8 [bytes]. The row length is a multiple of the type's block."""
    flat = np.ascontiguousarray(rows, np.float32).reshape(-1)
    encoder = ENCODERS[type_name]
    step = _SLICE_ELEMENTS
    if flat.size <= step:
        return encoder(flat)
    return np.concatenate([encoder(flat[i : i + step]) for i in range(0, flat.size, step)])


def _f32(x: np.ndarray) -> np.ndarray:
    return x.astype("<f4", copy=False).view(np.uint8)


def _f16(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return x.astype("<f2").view(np.uint8)


def _bf16(x: np.ndarray) -> np.ndarray:
    """Round to nearest, ties to even, in the integer representation."""
    bits = x.astype("<f4", copy=False).view("<u4")
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2").view(np.uint8)


def _q8_0(x: np.ndarray) -> np.ndarray:
    x = x.reshape(-1, BLOCK)
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(scale)
    codes = np.rint(scaled)  # halves to even; C's roundf takes them away from zero
    halves = np.abs(scaled - codes) == 0.5  # the difference is exact
    if halves.any():
        codes[halves] = scaled[halves] + np.copysign(np.float32(0.5), scaled[halves])
    return _join(_half(scale), codes.astype(np.int8).view(np.uint8))


def _q4_0(x: np.ndarray) -> np.ndarray:
    scale, codes = _symmetric(x, 8)
    return _join(_half(scale), _nibbles(codes))


def _q5_0(x: np.ndarray) -> np.ndarray:
    scale, codes = _symmetric(x, 16)
    return _join(_half(scale), _fifth_bits(codes), _nibbles(codes))


def _q4_1(x: np.ndarray) -> np.ndarray:
    scale, least, codes = _with_minimum(x, 15)
    return _join(_half(scale), _half(least), _nibbles(codes))


def _q5_1(x: np.ndarray) -> np.ndarray:
    scale, least, codes = _with_minimum(x, 31)
    return _join(_half(scale), _half(least), _fifth_bits(codes), _nibbles(codes))


def _symmetric(x: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """(scale, codes 0 .. 2 * half - 1): the first weight of largest magnitude gets code 0."""
    x = x.reshape(-1, BLOCK)
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    scale = (peak + np.float32(0)) / np.float32(-half)  # in C a block of zeros has peak +0, whatever their signs
    codes = np.minimum(x * _inverse(scale) + np.float32(half + 0.5), np.float32(2 * half - 1))
    return scale, codes.astype(np.uint8)


def _with_minimum(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scale, minimum, codes 0 .. top)."""
    x = x.reshape(-1, BLOCK)
    least = x.min(axis=1, keepdims=True)
    scale = (x.max(axis=1, keepdims=True) - least) / np.float32(top)
    codes = np.minimum((x - least) * _inverse(scale) + np.float32(0.5), np.float32(top))
    return scale, least, codes.astype(np.uint8)


def _inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale; 0 where that is not a number (a block of zeros, or of numbers far below what f16 can scale)."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return values.astype("<f2").view(np.uint8)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Low four bits: weight j in the low half of byte j, weight j + 16 in the high half."""
    low = codes & 15
    return low[:, :16] | low[:, 16:] << 4


def _fifth_bits(codes: np.ndarray) -> np.ndarray:
    """Bit 4 of weight j as bit j of a little-endian 32-bit number."""
    return np.packbits(codes >> 4, axis=1, bitorder="little")


def _join(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, axis=1).reshape(-1)


ENCODERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "f32": _f32, "f16": _f16, "bf16": _bf16, "q8_0": _q8_0, "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0,
    "q5_1": _q5_1,
}  # fmt: skip


def overflows(rows: np.ndarray, type_name: str) -> bool:
    """Whether a value, or a block's scale, is beyond f16 where the type stores one."""
    if type_name in ("f32", "bf16"):
        return False
    largest = float(np.abs(rows).max(initial=0.0))
    per_code = {"q8_0": 127, "q4_0": 8, "q5_0": 16}.get(type_name, 1)  # types with a minimum store a weight itself
    return largest / per_code > _F16_MAX
