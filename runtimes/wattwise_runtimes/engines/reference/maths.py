"""The maths of every supported architecture, one line of a paper at a time. B is always 1 and left out.

T: tokens of this call, S: rows attended to, H: query heads, K: key-value heads, D: head size, E: width.
"""

from __future__ import annotations

import math

import numpy as np


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467) over the last axis."""
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps)) * weight


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """LayerNorm (Ba et al. 2016, https://arxiv.org/abs/1607.06450) over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + np.float32(eps)) * weight + bias


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), written so that large negative x do not overflow."""
    return x * np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """GELU's tanh form (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415)."""
    return np.float32(0.5) * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU with the exact error function."""
    erf = np.vectorize(math.erf, otypes=[np.float32])
    return np.float32(0.5) * x * (1 + erf(x / math.sqrt(2)))


ACTIVATIONS = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}


def softcap(x: np.ndarray, cap: float | None) -> np.ndarray:
    """cap * tanh(x / cap); unchanged where there is no cap."""
    return x if cap is None else np.float32(cap) * np.tanh(x / np.float32(cap))


def rotate(x: np.ndarray, positions: np.ndarray, inv_freq: np.ndarray, factor: float) -> np.ndarray:
    """RoPE in half-split order on the first 2 * len(inv_freq) dimensions. x: [T, heads, D]."""
    half = len(inv_freq)
    angle = positions[:, None].astype(np.float64) * inv_freq  # [T, half]
    cos = (np.cos(angle) * factor).astype(np.float32)[:, None, :]
    sin = (np.sin(angle) * factor).astype(np.float32)[:, None, :]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray, scale: float, cap: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Grouped-query attention: q [T, H, D], k, v [K, S, D], visible [T, S] or by KV head [K, T, S].

    Gives [T, H, D] and the weights [H, T, S].
    """
    groups = q.shape[1] // k.shape[0]
    k, v = np.repeat(k, groups, axis=0), np.repeat(v, groups, axis=0)  # [H, S, D]
    scores = softcap(np.einsum("thd,hsd->hts", q, k) * np.float32(scale), cap)
    visible = visible[None] if visible.ndim == 2 else np.repeat(visible, groups, axis=0)
    scores = np.where(visible, scores, -np.inf)
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hts,hsd->thd", weights, v), weights
