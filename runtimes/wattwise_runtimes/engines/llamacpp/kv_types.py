"""Element types of the KV cache, and the rotation that llama.cpp applies to quantised keys.

With a quantised K cache and heads of a multiple of 64, keys (and queries) are multiplied by an orthogonal matrix
before they are stored, which spreads outliers. It is its own inverse, so views can give the keys as they were.
"""

from __future__ import annotations

import functools

import numpy as np

from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME, TensorType

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def rotation_size(kv_type: TensorType, head_dim: int) -> int:
    """Width of the Hadamard blocks that llama.cpp applies to each head of a quantised K; 0: it applies none."""
    if kv_type.block == 1 or head_dim % 64:
        return 0
    size = 64
    while head_dim % (2 * size) == 0:
        size *= 2
    return size


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
