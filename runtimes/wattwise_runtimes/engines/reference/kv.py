"""The reference KV store: one float32 array per layer for keys and one for values, rows in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wattwise_devices.errors import CorruptArtifact, PlanError
from wattwise_runtimes.contracts import KVView
from wattwise_runtimes.kv_blob import pack_rows, unpack_rows
from wattwise_runtimes.spec import ModelSpec


class ReferenceKV:
    """KVStore of the reference engine; see `contracts.KVStore` for what each method promises.

    turn: keys [kv heads, rows, dim] of a layer, and how many positions forward each row moves -> the keys there.
    """

    def __init__(
        self, spec: ModelSpec, capacity: int, turn: Callable[[int, np.ndarray, np.ndarray], np.ndarray] | None
    ) -> None:
        self._spec, self._turn = spec, turn
        # [layer, keys or values, kv head, row, dim]
        self.data = np.zeros((spec.layers, 2, spec.kv_heads, capacity, spec.head_dim), np.float32)
        self._positions = np.zeros((spec.layers, spec.kv_heads, 0), np.int64)
        self._tree: int | None = None  # rows of an open tree batch, at the end
        self.attention: list[np.ndarray] = []  # of the last chunk, per layer [H, T, S]

    @property
    def length(self) -> int:
        return self._positions.shape[2]

    @property
    def positions(self) -> np.ndarray:
        return self._positions[0, 0].copy()

    @property
    def next_position(self) -> int:
        return int(self._positions[0, 0, -1]) + 1 if self.length else 0

    @property
    def capacity_tokens(self) -> int:
        return self.data.shape[3]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def positions_of(self, layer: int) -> np.ndarray:
        """Positions of every KV head's rows, int64 [kv_heads, length]."""
        return self._positions[layer]

    def append(self, positions: np.ndarray, *, tree: bool = False) -> slice:
        """Reserve rows for new tokens (the engine writes them layer by layer); which rows they are."""
        start = self.length
        everywhere = np.broadcast_to(positions.astype(np.int64), (*self._positions.shape[:2], len(positions)))
        self._positions = np.concatenate([self._positions, everywhere], axis=2)
        self._tree = len(positions) if tree else None
        return slice(start, self.length)

    def clear(self) -> None:
        self._positions, self._tree = self._positions[:, :, :0], None

    def truncate(self, position: int) -> None:
        self.check_no_tree("truncate")
        if self._has_head_rows and 0 < position < self.next_position:
            before = self._positions == position - 1
            if not before[0, 0].any() or np.any(before != before[:1, :1]):
                raise ValueError(f"cannot rewind to {position}: heads hold other rows before it")
        self._keep(np.flatnonzero(self._positions[0, 0] < position))

    def drop(self, positions: Sequence[int]) -> None:
        self.check_no_tree("drop")
        gone = np.unique(np.asarray(positions, np.int64))
        missing = [p for p in gone.tolist() if not self._is_shared(p)]
        if missing:
            raise ValueError(f"cannot drop positions {missing[:5]}: not held (held: {self.length} rows)")
        if gone.size and gone[-1] == self.next_position - 1:
            raise ValueError(f"cannot drop position {gone[-1]}: it is the newest row, decoding continues from it")
        kept = self._positions[~np.isin(self._positions, gone)]
        self._keep_positions(kept.reshape(*self._positions.shape[:2], -1))

    def drop_by_head(self, keep: np.ndarray) -> None:
        self.check_no_tree("drop_by_head")
        keep = np.asarray(keep, np.int64)
        if keep.ndim != 3 or keep.shape[:2] != self._positions.shape[:2] or not keep.shape[2]:
            raise ValueError(f"positions to keep have shape {keep.shape}, expected [layers, kv_heads, at least 1]")
        if np.any(np.diff(keep, axis=2) <= 0):
            raise ValueError("positions to keep must increase within every head")
        if np.any(keep[:, :, -1] != self.next_position - 1):
            raise ValueError(f"every head must keep position {self.next_position - 1}: it is the newest row")
        for wanted, held in zip(keep.reshape(-1, keep.shape[2]), self._positions.reshape(-1, self.length), strict=True):
            missing = np.setdiff1d(wanted, held)
            if missing.size:
                raise ValueError(f"cannot keep positions {missing[:5].tolist()}: a head does not hold them")
        self._keep_positions(keep)

    def shift(self, start: int, stop: int, by: int) -> None:
        self.check_no_tree("shift")
        if self._turn is None:
            raise PlanError(
                "keys cannot be moved here: this model has no rotary positions", clash=("shift", "learned positions")
            )
        if self._has_head_rows:
            raise ValueError("cannot shift while heads hold different rows")
        held = self._positions[0, 0]
        is_moved = (held >= start) & (held < stop)
        moved = np.where(is_moved, held + by, held)
        if np.any(moved < 0) or np.any(np.diff(moved) <= 0):
            raise ValueError(f"moving positions {start}..{stop} by {by} would put rows out of order or below 0")
        steps = np.where(is_moved, by, 0)
        for layer in range(self._spec.layers):
            keys = self.data[layer, 0, :, : self.length]
            keys[:] = self._turn(layer, keys, steps)
        self._positions = np.broadcast_to(moved, self._positions.shape).copy()
        self.attention = []

    def accept(self, path: Sequence[int]) -> None:
        if self._tree is None:
            raise ValueError("accept without a tree batch before it")
        first = self.length - self._tree
        self._keep(np.concatenate([np.arange(first), first + np.asarray(path, np.int64)]))
        self._tree = None

    def view(self) -> KVView:
        self.check_no_tree("view")
        n = self.length
        has_attention = len(self.attention) == self._spec.layers and self.attention[0].shape[2] == n
        return KVView(
            positions=self.positions,
            layers=self._spec.layers,
            keys=lambda layer: self.data[layer, 0, :, :n].copy(),
            attention=(lambda layer: self.attention[layer]) if has_attention else None,
            head_positions=(lambda layer: self._positions[layer].copy()) if self._has_head_rows else None,
        )

    def export(self, start: int = 0, stop: int | None = None) -> bytes:
        self.check_no_tree("export")
        head_positions = None
        if self._has_head_rows:
            if start != 0 or stop is not None:
                raise ValueError("rows that differ by head can only be exported together")
            head_positions = self._positions
        stop = self.next_position if stop is None else stop
        held = self._positions[0, 0]
        rows = np.flatnonzero((held >= start) & (held < stop))
        payload = np.ascontiguousarray(self.data[:, :, :, rows]).tobytes()
        return pack_rows(
            engine="reference",
            spec=self._spec,
            kv_type="f32",
            positions=held[rows],
            payload=payload,
            head_positions=head_positions,
        )

    def restore(self, data: bytes) -> None:
        self.check_no_tree("restore")
        unpacked = unpack_rows(data, engine="reference", spec=self._spec, kv_type="f32", after=self.next_position)
        positions, payload = unpacked.positions, unpacked.payload
        shape = (self._spec.layers, 2, self._spec.kv_heads, len(positions), self._spec.head_dim)
        if len(payload) != 4 * int(np.prod(shape)):
            raise CorruptArtifact("<kv>", "payload bytes", len(payload), 4 * int(np.prod(shape)))
        if self.length + len(positions) > self.capacity_tokens:
            raise CorruptArtifact("<kv>", "rows", self.length + len(positions), self.capacity_tokens)
        if unpacked.head_positions is not None and self.length:
            raise CorruptArtifact("<kv>", "rows by head", "some", "an empty store to restore them into")
        rows = self.append(positions)
        self.data[:, :, :, rows] = np.frombuffer(payload, np.float32).reshape(shape)
        if unpacked.head_positions is not None:
            self._positions = unpacked.head_positions

    def check_no_tree(self, what: str = "forward") -> None:
        """Raise if a tree batch is still open."""
        if self._tree is not None:
            raise ValueError(f"{what} while a tree batch is open; call accept(path) or clear() first")

    @property
    def _has_head_rows(self) -> bool:
        return bool(np.any(self._positions != self._positions[:1, :1]))

    def _is_shared(self, position: int) -> bool:
        """Whether every head holds it."""
        return bool(np.all(np.any(self._positions == position, axis=2)))

    def _keep(self, rows: np.ndarray) -> None:
        """These rows of every head."""
        self.data[:, :, :, : len(rows)] = self.data[:, :, :, rows]
        self._positions = self._positions[:, :, rows]
        self.attention = []

    def _keep_positions(self, keep: np.ndarray) -> None:
        """The rows at these positions [layers, kv_heads, kept]."""
        for layer in range(keep.shape[0]):
            for head in range(keep.shape[1]):
                rows = np.searchsorted(self._positions[layer, head], keep[layer, head])
                self.data[layer, :, head, : len(rows)] = self.data[layer, :, head, rows].transpose(1, 0, 2)
        self._positions = keep.copy()
        self.attention = []
