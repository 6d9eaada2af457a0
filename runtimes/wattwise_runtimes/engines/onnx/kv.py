"""Keys and values in fixed buffers that the graph reads and appends to in place.

One array per layer for keys and one for values, [1, kv heads, capacity, stored row], bound as past and as present.
Rows beyond `length` are free: rolling back costs nothing, evicting moves the later rows down, by head where heads
keep different rows. `codec.py` says what a stored row is, `rows.py` which positions the rows hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattwise_devices.errors import CorruptArtifact, PlanError
from wattwise_runtimes.contracts import KVView
from wattwise_runtimes.engines.onnx.codec import KEYS, Codec
from wattwise_runtimes.engines.onnx.rows import Rows
from wattwise_runtimes.engines.onnx.scores import Scores
from wattwise_runtimes.engines.onnx.turning import layer_frequencies, turn
from wattwise_runtimes.kv_blob import UnpackedRows, pack_rows, unpack_rows
from wattwise_runtimes.spec import ModelSpec

_LINE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLimits:
    """Why rows cannot be evicted from the middle, evicted by head, or moved; None where they can."""

    no_drop: str | None = None
    no_drop_by_head: str | None = None
    no_shift: str | None = None


class OnnxKV:
    """KVStore over fixed buffers; see `contracts.KVStore` for what each method promises.

    layers: per layer, keys and values as stored. codec: what a stored row is. scores: where runs leave attention
    scores, None without them.
    """

    def __init__(
        self, spec: ModelSpec, capacity: int, codec: Codec, limits: RowLimits, scores: Scores | None = None
    ) -> None:
        self._spec, self.codec, self._limits, self._scores = spec, codec, limits, scores
        shape = (1, spec.kv_heads, capacity, codec.width)
        self.layers = [(_resident(shape, codec.dtype), _resident(shape, codec.dtype)) for _ in range(spec.layers)]
        self._rows = Rows(spec.layers, spec.kv_heads, capacity)
        self._tree: Sequence[int] | None = None  # parents of the open tree batch, whose rows are the last ones

    @property
    def length(self) -> int:
        return self._rows.length

    @property
    def positions(self) -> np.ndarray:
        return self._rows.first.copy()

    @property
    def next_position(self) -> int:
        return self._rows.next_position

    @property
    def capacity_tokens(self) -> int:
        return self._rows.capacity

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self.layers)

    def appended(self, positions: np.ndarray, *, tree: Sequence[int] | None = None) -> None:
        """Count rows that a run has just written behind the last one. tree: parents, where they are a tree's."""
        self._rows.append(positions)
        self._tree = tree
        if self._scores is not None:
            self._scores.are_current = True

    def release(self) -> None:
        """Give the buffers back; nothing works afterwards."""
        self.layers, self._scores = [], None
        self._rows.clear()

    def clear(self) -> None:
        self._tree = None
        self._rows.clear()
        self._forget_scores()

    def truncate(self, position: int) -> None:
        self.check_no_tree("truncate")
        self._rows.cut(position)
        self._forget_scores()

    def drop(self, positions: Sequence[int]) -> None:
        self.check_no_tree("drop")
        reason = self._limits.no_drop
        if reason is not None:
            raise PlanError(f"rows cannot be dropped here: {reason}", clash=("drop", reason))
        gone = np.unique(np.asarray(positions, np.int64))
        missing = self._rows.not_in_all_heads(gone)
        if missing.size:
            raise ValueError(f"cannot drop positions {missing[:5].tolist()}: not held (held: {self.length} rows)")
        if gone.size and gone[-1] == self.next_position - 1:
            raise ValueError(f"cannot drop position {gone[-1]}: it is the newest row, decoding continues from it")
        if self._rows.by_head is None:
            self._keep(np.flatnonzero(~np.isin(self._rows.first, gone)))
            return
        kept = [rows[~np.isin(rows, gone)] for rows in self._rows.each()]
        self._keep_by_head(np.stack(kept).reshape(*self._rows.heads, -1))

    def drop_by_head(self, keep: np.ndarray) -> None:
        self.check_no_tree("drop_by_head")
        reason = self._limits.no_drop_by_head
        if reason is not None:
            raise PlanError(f"rows cannot be dropped by head here: {reason}", clash=("drop_by_head", reason))
        keep = np.array(keep, np.int64)
        if keep.ndim != 3 or keep.shape[:2] != self._rows.heads or not keep.shape[2]:
            raise ValueError(f"positions to keep have shape {keep.shape}, expected [layers, kv_heads, at least 1]")
        if np.any(np.diff(keep, axis=2) <= 0):
            raise ValueError("positions to keep must increase within every head")
        if np.any(keep[:, :, -1] != self.next_position - 1):
            raise ValueError(f"every head must keep position {self.next_position - 1}: it is the newest row")
        for wanted, held in zip(keep.reshape(-1, keep.shape[2]), self._rows.each(), strict=True):
            missing = np.setdiff1d(wanted, held)
            if missing.size:
                raise ValueError(f"cannot keep positions {missing[:5].tolist()}: a head does not hold them")
        self._keep_by_head(keep)

    def shift(self, start: int, stop: int, by: int) -> None:
        self.check_no_tree("shift")
        reason = self._limits.no_shift
        if reason is not None:
            raise PlanError(f"keys cannot be moved here: {reason}", clash=("shift", reason))
        if self._rows.by_head is not None:
            raise ValueError("cannot shift while heads hold different rows")
        held = self._rows.first
        a, b = np.searchsorted(held, [start, stop]).tolist()
        if a >= b:
            return
        lowest = held[a - 1] if a else -1
        if held[a] + by <= lowest or (b < self.length and held[b - 1] + by >= held[b]):
            raise ValueError(f"moving positions {start}..{stop} by {by} would put rows out of order or below 0")
        for layer, (keys, _) in enumerate(self.layers):
            frequencies = layer_frequencies(self._spec, layer, self.capacity_tokens)
            for head in range(self._spec.kv_heads):
                moved = self.codec.decode(keys[0, head, a:b], layer, KEYS, head)
                turn(moved, by, frequencies)
                keys[0, head, a:b] = self.codec.encode(moved, layer, KEYS, head)
        self._rows.move(a, b, by)
        self._forget_scores()

    def accept(self, path: Sequence[int]) -> None:
        if self._tree is None:
            raise ValueError("accept without a tree batch before it")
        first, chosen = self.length - len(self._tree), [int(i) for i in path]
        if any(not 0 <= i < len(self._tree) for i in chosen):
            raise ValueError(f"path {chosen[:8]} does not name nodes of a tree of {len(self._tree)}")
        if [self._tree[i] for i in chosen] != [-1, *chosen[:-1]][: len(chosen)]:
            raise ValueError(f"path {chosen[:8]} does not go from the root to a node, parent to child")
        self._tree = None
        self._keep(np.concatenate([np.arange(first), first + np.array(chosen, np.int64)]))

    def view(self) -> KVView:
        self.check_no_tree("view")
        scores = self._scores
        return KVView(
            positions=self.positions,
            layers=self._spec.layers,
            keys=self._keys,
            attention=scores.of if scores is not None and scores.are_current else None,
            head_positions=self._rows.of_layer if self._rows.by_head is not None else None,
        )

    def export(self, start: int = 0, stop: int | None = None) -> bytes:
        self.check_no_tree("export")
        head_positions = None
        if self._rows.by_head is not None:
            if start != 0 or stop is not None:
                raise ValueError("rows that differ by head can only be exported together")
            head_positions = np.stack([self._rows.of_layer(layer) for layer in range(self._spec.layers)])
        held = self._rows.first
        stop = self.next_position if stop is None else stop
        a, b = np.searchsorted(held, [start, stop]).tolist()
        return pack_rows(
            engine="onnx",
            spec=self._spec,
            kv_type=self.codec.fingerprint,
            positions=held[a:b],
            payload=b"".join(part[0, :, a:b].tobytes() for layer in self.layers for part in layer),
            head_positions=head_positions,
        )

    def restore(self, data: bytes) -> None:
        self.check_no_tree("restore")
        unpacked = unpack_rows(
            data, engine="onnx", spec=self._spec, kv_type=self.codec.fingerprint, after=self.next_position
        )
        self._check_fit(unpacked)
        n, at = len(unpacked.positions), self.length
        shape = (self._spec.layers, 2, self._spec.kv_heads, n, self.codec.width)
        stored = np.frombuffer(unpacked.payload, self.codec.dtype).reshape(shape)
        for i, layer in enumerate(self.layers):
            for j, part in enumerate(layer):
                part[0, :, at : at + n] = stored[i, j]
        self._rows.append(unpacked.positions)
        if unpacked.head_positions is not None:
            self._rows.replace(unpacked.head_positions)
        self._forget_scores()

    def check_no_tree(self, what: str) -> None:
        """Raise if a tree batch is still open."""
        if self._tree is not None:
            raise ValueError(f"{what} while a tree batch is open; call accept(path) or clear() first")

    def _keys(self, layer: int) -> np.ndarray:
        """Of the rows held, float32 [kv_heads, length, head_dim]."""
        keys = np.empty((self._spec.kv_heads, self.length, self._spec.head_dim), np.float32)
        for head, stored in enumerate(self.layers[layer][KEYS][0, :, : self.length]):
            keys[head] = self.codec.decode(stored, layer, KEYS, head)
        return keys

    def _check_fit(self, unpacked: UnpackedRows) -> None:
        """Raise CorruptArtifact for rows of another size, too many, or such as this store cannot hold."""
        positions, n = unpacked.positions, len(unpacked.positions)
        wanted = self.nbytes // self.capacity_tokens * n
        found: tuple[str, object, object] | None = None
        if len(unpacked.payload) != wanted:
            found = "payload bytes", len(unpacked.payload), wanted
        elif self.length + n > self.capacity_tokens:
            found = "rows", self.length + n, self.capacity_tokens
        elif self._limits.no_drop and n and (positions[0] != self.length or positions[-1] != positions[0] + n - 1):
            found = "positions", positions[:4].tolist(), f"{self.length}, ... without holes"
        elif unpacked.head_positions is not None and (self.length or self._limits.no_drop_by_head):
            found = "rows by head", "some", "an empty store that can hold them"
        if found is not None:
            raise CorruptArtifact(Path("<kv>"), *found)

    def _forget_scores(self) -> None:
        if self._scores is not None:
            self._scores.are_current = False

    def _keep(self, rows: np.ndarray) -> None:
        """Keep these row numbers (increasing) of every head."""
        first = _first_moved(rows)
        if first < len(rows):
            for layer in self.layers:
                for part in layer:
                    part[0][:, first : len(rows)] = part[0][:, rows[first:]]
        self._rows.take(rows)
        self._forget_scores()

    def _keep_by_head(self, positions: np.ndarray) -> None:
        """Keep the rows at these positions, [layers, kv_heads, kept]."""
        for number, layer in enumerate(self.layers):
            for head, kept in enumerate(positions[number]):
                rows = np.searchsorted(self._rows.of(number, head), kept)
                first = _first_moved(rows)
                for part in layer:
                    part[0, head, first : len(rows)] = part[0, head, rows[first:]]
        self._rows.replace(positions)
        self._forget_scores()


def _first_moved(rows: np.ndarray) -> int:
    """The first of these row numbers (increasing) that does not stay where it is; their count if all do."""
    return int(np.sum(rows == np.arange(len(rows))))


def _resident(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros whose pages exist from the start, so that a full context needs no more memory than an empty one.

    On cache lines: numpy aligns to 16 bytes only, and every vector load of the attention would touch two lines.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + _LINE_BYTES, np.uint8)
    raw.fill(0)
    start = -raw.ctypes.data % _LINE_BYTES
    return raw[start : start + nbytes].view(dtype).reshape(shape)
