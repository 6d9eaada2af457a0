"""The reference KV store: one float32 array per layer for keys and one for values, rows in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.contracts import KVView
from wattwise_runtimes.kv_blob import pack_rows, unpack_rows
from wattwise_runtimes.spec import ModelSpec


class ReferenceKV:
    """KVStore of the reference engine; see `contracts.KVStore` for what each method promises."""

    def __init__(self, spec: ModelSpec, capacity: int) -> None:
        self._spec = spec
        # [layer, keys or values, kv head, row, dim]
        self.data = np.zeros((spec.layers, 2, spec.kv_heads, capacity, spec.head_dim), np.float32)
        self._positions = np.zeros(0, np.int64)
        self._tree: int | None = None  # rows of an open tree batch, at the end
        self.attention: list[np.ndarray] = []  # of the last forward call, per layer [H, T, S]

    @property
    def length(self) -> int:
        return len(self._positions)

    @property
    def positions(self) -> np.ndarray:
        return self._positions.copy()

    @property
    def next_position(self) -> int:
        return int(self._positions[-1]) + 1 if len(self._positions) else 0

    @property
    def capacity_tokens(self) -> int:
        return self.data.shape[3]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def append(self, positions: np.ndarray, *, tree: bool = False) -> slice:
        """Reserve rows for new tokens (the engine writes them layer by layer); which rows they are."""
        start = self.length
        self._positions = np.concatenate([self._positions, positions.astype(np.int64)])
        self._tree = len(positions) if tree else None
        return slice(start, self.length)

    def clear(self) -> None:
        self._positions, self._tree = self._positions[:0], None

    def truncate(self, position: int) -> None:
        self._check_no_tree("truncate")
        self._keep(np.flatnonzero(self._positions < position))

    def drop(self, positions: Sequence[int]) -> None:
        self._check_no_tree("drop")
        gone = np.unique(np.asarray(positions, np.int64))
        missing = np.setdiff1d(gone, self._positions)
        if missing.size:
            raise ValueError(f"cannot drop positions {missing[:5].tolist()}: not held (held: {self.length} rows)")
        if gone.size and gone[-1] == self._positions[-1]:
            raise ValueError(f"cannot drop position {gone[-1]}: it is the newest row, decoding continues from it")
        self._keep(np.flatnonzero(~np.isin(self._positions, gone)))

    def accept(self, path: Sequence[int]) -> None:
        if self._tree is None:
            raise ValueError("accept without a tree batch before it")
        first = self.length - self._tree
        self._keep(np.concatenate([np.arange(first), first + np.asarray(path, np.int64)]))
        self._tree = None

    def view(self) -> KVView:
        self._check_no_tree("view")
        n = self.length
        has_attention = len(self.attention) == self._spec.layers and self.attention[0].shape[2] == n
        return KVView(
            positions=self.positions,
            layers=self._spec.layers,
            keys=lambda layer: self.data[layer, 0, :, :n].copy(),
            attention=(lambda layer: self.attention[layer]) if has_attention else None,
        )

    def export(self, start: int = 0, stop: int | None = None) -> bytes:
        self._check_no_tree("export")
        stop = self.next_position if stop is None else stop
        rows = np.flatnonzero((self._positions >= start) & (self._positions < stop))
        payload = np.ascontiguousarray(self.data[:, :, :, rows]).tobytes()
        kept = self._positions[rows]
        return pack_rows(engine="reference", spec=self._spec, kv_type="f32", positions=kept, payload=payload)

    def restore(self, data: bytes) -> None:
        self._check_no_tree("restore")
        positions, payload = unpack_rows(
            data, engine="reference", spec=self._spec, kv_type="f32", after=self.next_position
        )
        shape = (self._spec.layers, 2, self._spec.kv_heads, len(positions), self._spec.head_dim)
        if len(payload) != 4 * int(np.prod(shape)):
            raise CorruptArtifact("<kv>", "payload bytes", len(payload), 4 * int(np.prod(shape)))
        if self.length + len(positions) > self.capacity_tokens:
            raise CorruptArtifact("<kv>", "rows", self.length + len(positions), self.capacity_tokens)
        rows = self.append(positions)
        self.data[:, :, :, rows] = np.frombuffer(payload, np.float32).reshape(shape)

    def check_no_tree(self) -> None:
        """Raise if a tree batch is still open."""
        self._check_no_tree("forward")

    def _check_no_tree(self, what: str) -> None:
        if self._tree is not None:
            raise ValueError(f"{what} while a tree batch is open; call accept(path) or clear() first")

    def _keep(self, rows: np.ndarray) -> None:
        self.data[:, :, :, : len(rows)] = self.data[:, :, :, rows]
        self._positions = self._positions[rows]
        self.attention = []
