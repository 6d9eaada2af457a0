"""Which positions the rows of the cache hold: one list for all heads, behind rows that may differ by layer and head.

Rows that differ are the first ones (`drop_by_head` made them so); what was appended later is the same everywhere. Only
the first ones are kept once per layer and head, 8 bytes each, and only while they differ.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class Rows:
    """Positions, int64, increasing in every head (after a tree: by node, until it is accepted). Knows no keys.

    length: rows held, the same number in every head. by_head: positions of the first m rows, [layers, kv_heads, m],
    where heads differ in them; None where they do not.
    """

    def __init__(self, layers: int, kv_heads: int, capacity: int) -> None:
        self.length = 0
        self.by_head: np.ndarray | None = None
        self.heads = (layers, kv_heads)
        self._first = np.zeros(capacity, np.int64)  # of layer 0 and head 0; from row m on of all

    @property
    def first(self) -> np.ndarray:
        """Of layer 0 and KV head 0, [length]; the store's own memory."""
        return self._first[: self.length]

    @property
    def capacity(self) -> int:
        """Rows that fit."""
        return len(self._first)

    @property
    def next_position(self) -> int:
        """The newest position + 1; 0 without rows."""
        return int(self._first[self.length - 1]) + 1 if self.length else 0

    def of(self, layer: int, head: int) -> np.ndarray:
        """Of one KV head, [length]."""
        if self.by_head is None:
            return self.first
        own = self.by_head[layer, head]
        return np.concatenate([own, self.first[len(own) :]])

    def each(self) -> Iterator[np.ndarray]:
        """Of every KV head, [length] each, layer by layer."""
        return (self.of(layer, head) for layer, head in np.ndindex(self.heads))

    def of_layer(self, layer: int) -> np.ndarray:
        """Of all KV heads of a layer, [kv_heads, length]."""
        return np.stack([self.of(layer, head) for head in range(self.heads[1])])

    def not_in_all_heads(self, positions: np.ndarray) -> np.ndarray:
        """Those of `positions` that some head does not hold."""
        held = np.isin(positions, self.first)
        if self.by_head is not None:
            for rows in self.each():
                held &= np.isin(positions, rows)
        return positions[~held]

    def append(self, positions: np.ndarray) -> None:
        """Rows held by all heads, behind the last one. The caller has checked that they fit."""
        end = self.length + len(positions)
        self._first[self.length : end] = positions
        self.length = end

    def cut(self, position: int) -> None:
        """Forget what is at `position` or later. ValueError where some head would not end right before it."""
        kept = int(np.searchsorted(self.first, position))
        if self.by_head is not None and kept < self.length:
            for rows in self.each():
                if np.searchsorted(rows, position) != kept or (kept and rows[kept - 1] != position - 1):
                    raise ValueError(f"cannot rewind to {position}: some heads have dropped the row before it")
        self.length = kept
        self._forget_equal()

    def take(self, kept: np.ndarray) -> None:
        """Only these row numbers stay, increasing. Rows that differ by head must all be among them."""
        self._first[: len(kept)] = self.first[kept]
        self.length = len(kept)

    def replace(self, by_head: np.ndarray) -> None:
        """These positions from now on, [layers, kv_heads, rows]."""
        self.length = by_head.shape[2]
        self._first[: self.length] = by_head[0, 0]
        self.by_head = by_head
        self._forget_equal()

    def move(self, start: int, stop: int, by: int) -> None:
        """Add to the positions of row numbers start to stop - 1. Not while heads differ."""
        self._first[start:stop] += by

    def clear(self) -> None:
        """Forget everything."""
        self.length, self.by_head = 0, None

    def _forget_equal(self) -> None:
        """Keep rows by head only as far as heads differ in them."""
        if self.by_head is None:
            return
        held = self.by_head[:, :, : self.length]
        differ = np.flatnonzero(np.any(held != held[:1, :1], axis=(0, 1)))
        self.by_head = held[:, :, : differ[-1] + 1].copy() if differ.size else None
