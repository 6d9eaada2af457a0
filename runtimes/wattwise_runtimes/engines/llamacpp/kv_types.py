"""Element types of the KV cache, and the rotation that llama.cpp applies to quantised keys.

With a quantised K cache and heads of a multiple of 64, keys (and queries) are multiplied by an orthogonal matrix
before they are stored, which spreads outliers. It is its own inverse, so views can give the keys as they were. The
environment variable LLAMA_ATTN_ROT_DISABLE switches that off for contexts made while it is set.
"""

from __future__ import annotations

import functools
import os
import re

import numpy as np

from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME, TensorType

ROTATION_SWITCH = "LLAMA_ATTN_ROT_DISABLE"
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def rotation_size(kv_type: TensorType, head_dim: int) -> int:
    """Width of the Hadamard blocks that a context made now applies to each head of a quantised K; 0: none."""
    if kv_type.block == 1 or head_dim % 64 or _rotation_is_off():
        return 0
    size = 64
    while head_dim % (2 * size) == 0:
        size *= 2
    return size


def _rotation_is_off() -> bool:
    """As C's atoi reads the variable: any number but 0 switches the rotation off."""
    number = re.match(r"\s*[+-]?\d+", os.environ.get(ROTATION_SWITCH, ""))
    return number is not None and int(number[0]) != 0


@functools.cache
def hadamard(size: int) -> np.ndarray:
    """Sylvester's Hadamard matrix divided by sqrt(size): orthogonal, symmetric, its own inverse. float32."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(size))


def kv_type(name: str) -> TensorType:
    """The ggml type of a KV type name; KeyError for a name not in KV_TYPES."""
    if name not in KV_TYPES:
        raise KeyError(name)
    return TYPE_BY_NAME[name]
