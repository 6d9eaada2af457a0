"""Keys and values in fixed buffers that the graph reads and appends to in place.

One array per layer for keys and one for values, [1, kv heads, capacity, head size], bound as past and as present.
Rows beyond `length` are free: rolling back costs nothing, evicting moves the later rows down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wattwise_devices.errors import CorruptArtifact, PlanError
from wattwise_runtimes.contracts import KVView
from wattwise_runtimes.kv_blob import pack_rows, unpack_rows
from wattwise_runtimes.spec import ModelSpec

_LINE_BYTES = 64
KV_NAMES = {np.float32: "f32", np.float16: "f16"}


class OnnxKV:
    """KVStore over fixed buffers; see `contracts.KVStore` for what each method promises.

    no_drop: why rows cannot be evicted from the middle; None where they can.
    """

    def __init__(self, spec: ModelSpec, capacity: int, dtype: type, *, no_drop: str | None) -> None:
        self._spec, self._dtype, self.no_drop = spec, dtype, no_drop
        shape = (1, spec.kv_heads, capacity, spec.head_dim)
        self.layers = [(_resident(shape, dtype), _resident(shape, dtype)) for _ in range(spec.layers)]
        self._positions = np.zeros(capacity, np.int64)
        self._length = 0
        self._tree: Sequence[int] | None = None  # parents of the open tree batch, whose rows are the last ones

    @property
    def length(self) -> int:
        return self._length

    @property
    def positions(self) -> np.ndarray:
        return self._positions[: self._length].copy()

    @property
    def next_position(self) -> int:
        return int(self._positions[self._length - 1]) + 1 if self._length else 0

    @property
    def capacity_tokens(self) -> int:
        return len(self._positions)

    @property
    def nbytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self.layers)

    def appended(self, positions: np.ndarray, *, tree: Sequence[int] | None = None) -> None:
        """Count rows that a run has just written behind the last one. tree: parents, where they are a tree's."""
        end = self._length + len(positions)
        self._positions[self._length : end] = positions
        self._length = end
        self._tree = tree

    def release(self) -> None:
        """Give the buffers back; nothing works afterwards."""
        self.layers = []
        self._length = 0

    def clear(self) -> None:
        self._length, self._tree = 0, None

    def truncate(self, position: int) -> None:
        self.check_no_tree("truncate")
        self._length = int(np.searchsorted(self._positions[: self._length], position))

    def drop(self, positions: Sequence[int]) -> None:
        self.check_no_tree("drop")
        if self.no_drop is not None:
            raise PlanError(f"rows cannot be dropped here: {self.no_drop}", clash=("drop", self.no_drop))
        held = self._positions[: self._length]
        gone = np.unique(np.asarray(positions, np.int64))
        missing = np.setdiff1d(gone, held)
        if missing.size:
            raise ValueError(f"cannot drop positions {missing[:5].tolist()}: not held (held: {self._length} rows)")
        if gone.size and gone[-1] == held[-1]:
            raise ValueError(f"cannot drop position {gone[-1]}: it is the newest row, decoding continues from it")
        self._keep(np.flatnonzero(~np.isin(held, gone)))

    def drop_by_head(self, keep: np.ndarray) -> None:
        raise PlanError("rows by head are not available on the onnx engine", clash=("drop_by_head", "engine onnx"))

    def shift(self, start: int, stop: int, by: int) -> None:
        raise PlanError("keys cannot be moved on the onnx engine", clash=("shift", "engine onnx"))

    def accept(self, path: Sequence[int]) -> None:
        if self._tree is None:
            raise ValueError("accept without a tree batch before it")
        first, chosen = self._length - len(self._tree), [int(i) for i in path]
        if any(not 0 <= i < len(self._tree) for i in chosen):
            raise ValueError(f"path {chosen[:8]} does not name nodes of a tree of {len(self._tree)}")
        if [self._tree[i] for i in chosen] != [-1, *chosen[:-1]][: len(chosen)]:
            raise ValueError(f"path {chosen[:8]} does not go from the root to a node, parent to child")
        self._tree = None
        self._keep(np.concatenate([np.arange(first), first + np.array(chosen, np.int64)]))

    def view(self) -> KVView:
        self.check_no_tree("view")
        n = self._length
        return KVView(
            positions=self.positions,
            layers=self._spec.layers,
            keys=lambda layer: self.layers[layer][0][0, :, :n].astype(np.float32),
        )

    def export(self, start: int = 0, stop: int | None = None) -> bytes:
        self.check_no_tree("export")
        held = self._positions[: self._length]
        stop = self.next_position if stop is None else stop
        a, b = np.searchsorted(held, [start, stop]).tolist()
        payload = b"".join(part[0, :, a:b].tobytes() for layer in self.layers for part in layer)
        return pack_rows(engine="onnx", spec=self._spec, kv_type=self.kv_type, positions=held[a:b], payload=payload)

    def restore(self, data: bytes) -> None:
        self.check_no_tree("restore")
        unpacked = unpack_rows(data, engine="onnx", spec=self._spec, kv_type=self.kv_type, after=self.next_position)
        positions, payload = unpacked.positions, unpacked.payload
        n, item = len(positions), np.dtype(self._dtype).itemsize
        shape = (self._spec.layers, 2, self._spec.kv_heads, n, self._spec.head_dim)
        wanted = item * self._spec.kv_row_elements() * n
        if len(payload) != wanted:
            raise CorruptArtifact(Path("<kv>"), "payload bytes", len(payload), wanted)
        if self._length + n > self.capacity_tokens:
            raise CorruptArtifact(Path("<kv>"), "rows", self._length + n, self.capacity_tokens)
        if self.no_drop is not None and n and (positions[0] != self._length or positions[-1] != positions[0] + n - 1):
            raise CorruptArtifact(
                Path("<kv>"), "positions", positions[:4].tolist(), f"{self._length}, ... without holes"
            )
        rows = np.frombuffer(payload, self._dtype).reshape(shape)
        for i, layer in enumerate(self.layers):
            for j, part in enumerate(layer):
                part[0, :, self._length : self._length + n] = rows[i, j]
        self.appended(positions)

    @property
    def kv_type(self) -> str:
        """Element type in the words of LoadSpec."""
        return KV_NAMES[self._dtype]

    def check_no_tree(self, what: str) -> None:
        """Raise if a tree batch is still open."""
        if self._tree is not None:
            raise ValueError(f"{what} while a tree batch is open; call accept(path) or clear() first")

    def _keep(self, rows: np.ndarray) -> None:
        """Keep these rows (increasing), moved together; those before the first gap stay where they are."""
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        if moved.size:
            first = int(moved[0])
            for layer in self.layers:
                for part in layer:
                    part[0][:, first : len(rows)] = part[0][:, rows[first:]]
            self._positions[first : len(rows)] = self._positions[rows[first:]]
        self._length = len(rows)


def _resident(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros whose pages exist from the start, so that a full context needs no more memory than an empty one.

    On cache lines: numpy aligns to 16 bytes only, and every vector load of the attention would touch two lines.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(nbytes + _LINE_BYTES, np.uint8)
    raw.fill(0)
    start = -raw.ctypes.data % _LINE_BYTES
    return raw[start : start + nbytes].view(dtype).reshape(shape)
