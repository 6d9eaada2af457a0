"""What a policy sees: the rows held now, their keys, and what attention has said about them so far.

Engines show the attention of the last chunk only (`KVView.attention`). `AttentionBook` adds up what went by, and keeps
step with rows that are dropped, so that a policy can look at sums over all queries or at the last few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wattwise.kv.held_state import SeenAttention
from wattwise_devices.errors import CorruptArtifact, PlanError
from wattwise_runtimes.contracts import KVView


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Read-only, and nothing in it reaches back into the engine.

    positions: int64 [layers, kv_heads, rows], the same for all heads unless rows were dropped by head.
    keys(layer): float32 [kv_heads, rows, head_dim], after RoPE; None where the engine cannot show them.
    total(layer): attention that each row got from all queries so far, float32 [heads, rows].
    chances(layer): how many queries could see each row, float32 [kv_heads, rows]; older rows had more of them.
    recent(layer): attention of the last queries, the newest last, float32 [heads, queries, rows]; right after a rewind
    there may be none.
    The three are None where attention is not watched.
    """

    positions: np.ndarray
    keys: Callable[[int], np.ndarray] | None = None
    total: Callable[[int], np.ndarray] | None = None
    chances: Callable[[int], np.ndarray] | None = None
    recent: Callable[[int], np.ndarray] | None = None

    @property
    def layers(self) -> int:
        return self.positions.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.positions.shape[1]

    @property
    def rows(self) -> int:
        return self.positions.shape[2]


class AttentionBook:
    """Attention by row, for one KV store. queries: how many of the last ones are kept one by one.

    `add` after every forward call of at most one chunk, `keep` with every eviction, `cut` with every rewind.
    """

    def __init__(self, layers: int, heads: int, kv_heads: int, queries: int) -> None:
        self._shape = (layers, heads, kv_heads)
        self._queries = queries
        self.clear()

    def clear(self) -> None:
        """Nothing was read yet."""
        layers, heads, kv_heads = self._shape
        self._total = np.zeros((layers, heads, 0), np.float32)
        self._chances = np.zeros((layers, kv_heads, 0), np.float32)
        self._recent = np.zeros((layers, heads, 0, 0), np.float32)

    @property
    def rows(self) -> int:
        """Rows that the book knows."""
        return self._total.shape[2]

    def add(self, view: KVView, tokens: int) -> None:
        """The attention of the forward call that has just appended `tokens` rows, one chunk at most."""
        if view.attention is None:
            raise PlanError("the engine shows no attention; load it with attention_scores=True")
        layers, heads, _ = self._shape
        grown = len(view.positions)
        if self.rows + tokens != grown:
            raise ValueError(f"the book knows {self.rows} rows, {tokens} were added, and {grown} are held")
        self._total = _wider(self._total, tokens)
        self._chances = _wider(self._chances, tokens)
        self._chances += np.minimum(tokens, grown - np.arange(grown))  # the new rows: only themselves and later ones
        kept = min(self._queries, self._recent.shape[2] + tokens)
        recent = np.zeros((layers, heads, kept, grown), np.float32)
        old = max(0, kept - tokens)
        if old:
            recent[:, :, :old, : self.rows - tokens] = self._recent[:, :, self._recent.shape[2] - old :]
        for layer in range(layers):
            attention = view.attention(layer)
            if attention.shape != (heads, tokens, grown):
                raise ValueError(f"attention has shape {attention.shape}, expected {(heads, tokens, grown)}")
            self._total[layer] += attention.sum(axis=1)
            if kept:
                recent[layer, :, old:] = attention[:, tokens - (kept - old) :]
        self._recent = recent

    def keep(self, rows: np.ndarray) -> None:
        """Row numbers that stay, int64 [kept] or by head [layers, kv_heads, kept]."""
        layers, heads, kv_heads = self._shape
        by_kv_head = np.broadcast_to(rows, (layers, kv_heads, rows.shape[-1]))
        by_head = np.repeat(by_kv_head, heads // kv_heads, axis=1)
        self._total = np.take_along_axis(self._total, by_head, axis=2)
        self._chances = np.take_along_axis(self._chances, by_kv_head, axis=2)
        recent = np.empty((layers, heads, self._recent.shape[2], rows.shape[-1]), np.float32)
        for layer, head in np.ndindex(layers, heads):  # one by one: an index for all would take more than the numbers
            recent[layer, head] = self._recent[layer, head][:, by_head[layer, head]]
        self._recent = recent

    def insert(self, row: int, count: int) -> None:
        """Rows have come back in front of this one; what they once got is not known, and counts as nothing."""
        self._total, self._chances, self._recent = (
            np.insert(part, [row] * count, 0, axis=-1) for part in (self._total, self._chances, self._recent)
        )

    def cut(self, rows: int) -> None:
        """Forget all rows from this one on. What they said about earlier rows stays in the sums."""
        if rows >= self.rows:
            return
        lost = self.rows - rows
        self._total, self._chances = self._total[:, :, :rows], self._chances[:, :, :rows]
        self._recent = self._recent[:, :, : max(0, self._recent.shape[2] - lost), :rows]

    def seen(self) -> SeenAttention:
        """Everything that the book knows; its own memory, as it is at this moment."""
        return SeenAttention(total=self._total, chances=self._chances, recent=self._recent)

    def take(self, seen: SeenAttention | None, rows: int) -> None:
        """Know what another book knew of so many rows. Raises CorruptArtifact if that is not of such a book."""
        layers, heads, kv_heads = self._shape
        shapes = [part.shape for part in seen.parts] if seen is not None else []
        singly = min(self._queries, shapes[2][2] if shapes and len(shapes[2]) == 4 else 0)
        wanted = [(layers, heads, rows), (layers, kv_heads, rows), (layers, heads, singly, rows)]
        if seen is None or shapes != wanted:
            raise CorruptArtifact("<held text>", "shapes of attention", shapes, wanted)
        self._total, self._chances, self._recent = (part.copy() for part in seen.parts)

    def sight(self, view: KVView, positions: np.ndarray) -> Sight:
        """Keys from the engine, attention from the book."""
        return Sight(
            positions=positions,
            keys=view.keys,
            total=lambda layer: self._total[layer],
            chances=lambda layer: self._chances[layer],
            recent=lambda layer: self._recent[layer],
        )


def positions_by_head(view: KVView, kv_heads: int) -> np.ndarray:
    """int64 [layers, kv_heads, rows], whether or not heads hold different rows."""
    if view.head_positions is None:
        return np.broadcast_to(view.positions, (view.layers, kv_heads, len(view.positions)))
    return np.stack([view.head_positions(layer) for layer in range(view.layers)])


def _wider(array: np.ndarray, more: int) -> np.ndarray:
    """With zeros for new rows at the end of the last axis."""
    return np.concatenate([array, np.zeros((*array.shape[:-1], more), np.float32)], axis=-1)
