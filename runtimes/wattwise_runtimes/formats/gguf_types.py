"""The tables of GGUF: value types of metadata and tensor types, by the numbers that stand in files.

Tensor types as in ggml.h of llama.cpp (September 2026): number, name, elements per block, bytes per block. Types
without a row here were removed from the format. Facts only; how blocks are decoded is in `gguf_quants`.
Spec: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class TensorType:
    """One ggml tensor type: `block` elements of a row are stored in `block_bytes` bytes."""

    number: int
    name: str
    block: int
    block_bytes: int

    def nbytes(self, elements: int) -> int:
        """Bytes of so many elements, a multiple of `block`."""
        return elements // self.block * self.block_bytes


TENSOR_TYPES: dict[int, TensorType] = {
    number: TensorType(number, name, block, block_bytes)
    for number, name, block, block_bytes in (
        (0, "f32", 1, 4), (1, "f16", 1, 2), (2, "q4_0", 32, 18), (3, "q4_1", 32, 20),
        (6, "q5_0", 32, 22), (7, "q5_1", 32, 24), (8, "q8_0", 32, 34), (9, "q8_1", 32, 36),
        (10, "q2_k", 256, 84), (11, "q3_k", 256, 110), (12, "q4_k", 256, 144), (13, "q5_k", 256, 176),
        (14, "q6_k", 256, 210), (15, "q8_k", 256, 292), (16, "iq2_xxs", 256, 66), (17, "iq2_xs", 256, 74),
        (18, "iq3_xxs", 256, 98), (19, "iq1_s", 256, 50), (20, "iq4_nl", 32, 18), (21, "iq3_s", 256, 110),
        (22, "iq2_s", 256, 82), (23, "iq4_xs", 256, 136), (24, "i8", 1, 1), (25, "i16", 1, 2),
        (26, "i32", 1, 4), (27, "i64", 1, 8), (28, "f64", 1, 8), (29, "iq1_m", 256, 56),
        (30, "bf16", 1, 2), (34, "tq1_0", 256, 54), (35, "tq2_0", 256, 66), (39, "mxfp4", 32, 17),
        (40, "nvfp4", 64, 36), (41, "q1_0", 128, 18), (42, "q2_0", 64, 18),
    )
}  # fmt: skip
TYPE_BY_NAME: dict[str, TensorType] = {t.name: t for t in TENSOR_TYPES.values()}

REMOVED_TYPES: dict[int, str] = {
    4: "q4_2", 5: "q4_3", 31: "q4_0_4_4", 32: "q4_0_4_8", 33: "q4_0_8_8",
    36: "iq4_nl_4_4", 37: "iq4_nl_4_8", 38: "iq4_nl_8_8",
}  # fmt: skip

STRING, ARRAY, BOOL = 8, 9, 7
VALUE_TYPES: dict[int, tuple[str, np.dtype]] = {  # of metadata; numbers only
    number: (name, np.dtype(dtype))
    for number, name, dtype in (
        (0, "uint8", "<u1"), (1, "int8", "<i1"), (2, "uint16", "<u2"), (3, "int16", "<i2"), (4, "uint32", "<u4"),
        (5, "int32", "<i4"), (6, "float32", "<f4"), (BOOL, "bool", "?"), (10, "uint64", "<u8"), (11, "int64", "<i8"),
        (12, "float64", "<f8"),
    )
}  # fmt: skip
