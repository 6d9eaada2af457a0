"""Keys as `KVView` shows them: copied out of llama.cpp's memory when first asked for, and once for all layers.

What is llama.cpp's own is undone: quantisation, the rotation of quantised keys, adjacent-pair RoPE order, the order of
the cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wattwise_runtimes.engines.llamacpp.kv_types import hadamard
from wattwise_runtimes.engines.llamacpp.state import CacheRows
from wattwise_runtimes.formats.gguf_quants import dequantize
from wattwise_runtimes.formats.gguf_types import TensorType
from wattwise_runtimes.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyForm:
    """How keys are stored. rotation: width of the Hadamard blocks (0: none). neox_rope: half-split RoPE order, else
    adjacent pairs."""

    spec: ModelSpec
    kv_type: TensorType
    rotation: int
    neox_rope: bool

    def read(self, cache: CacheRows, layer: int) -> np.ndarray:
        """Keys of one layer, float32 [kv_heads, rows, head_dim], by position, in half-split RoPE order."""
        s = self.spec
        order = np.argsort(cache.positions, kind="stable")
        rows = dequantize(np.ascontiguousarray(cache.keys[layer][order]).reshape(-1), self.kv_type.name)
        keys = rows.reshape(len(order), s.kv_heads, s.head_dim)
        if self.rotation:
            keys = (keys.reshape(-1, self.rotation) @ hadamard(self.rotation)).reshape(keys.shape)
        if s.rope is not None and not self.neox_rope:
            pairs = np.arange(s.rope.dims).reshape(-1, 2).T.reshape(-1)  # 0 2 4 ... 1 3 5 ...
            keys = keys[..., np.concatenate([pairs, np.arange(s.rope.dims, s.head_dim)])]
        return np.ascontiguousarray(keys.transpose(1, 0, 2))


class LazyKeys:
    """`KVView.keys`: reads the rows on first use, then serves every layer from the copy."""

    def __init__(self, read_rows: Callable[[], list[CacheRows]], form: KeyForm) -> None:
        self._read_rows, self._form = read_rows, form
        self._rows: list[CacheRows] | None = None

    def __call__(self, layer: int) -> np.ndarray:
        if self._rows is None:
            self._rows = self._read_rows()
        return self._form.read(self._rows[0], layer)
