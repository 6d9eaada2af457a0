"""Keys at other positions: RoPE is linear in the position, so moving a key on by n positions turns it once more.

Half-split order, as in our graphs: dimension i pairs with i + rope.dims / 2, further dimensions do not turn. LongRoPE's
attention_factor is in the keys already and is not applied again.
Su et al. 2021, https://arxiv.org/abs/2104.09864
"""

from __future__ import annotations

import numpy as np

from wattwise_runtimes.spec import ModelSpec


def layer_frequencies(spec: ModelSpec, layer: int, context: int) -> np.ndarray:
    """Angle per position of each pair in this layer, float64 [pairs], for an engine with this context."""
    if spec.rope is None:
        return np.empty(0)
    return spec.rope.inverse_frequencies(context=context, local=spec.is_sliding(layer))


def turn(keys: np.ndarray, by: int, frequencies: np.ndarray) -> None:
    """Move keys float32 [..., head_dim] on by `by` positions, in place."""
    half = len(frequencies)
    angle = by * frequencies
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = keys[..., :half], keys[..., half : 2 * half]
    turned = a * cos - b * sin
    b[:] = b * cos + a * sin
    a[:] = turned


def pair_lengths(keys: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """What no turn changes, by dimension of keys [..., head_dim]: the length of its pair, or its own magnitude."""
    lengths = np.abs(keys)
    if spec.rope is not None:
        half = spec.rope.dims // 2
        pairs = np.hypot(keys[..., :half], keys[..., half : 2 * half])
        lengths[..., :half] = lengths[..., half : 2 * half] = pairs
    return lengths
