"""The KV store over llama.cpp's memory: sequence 0 is the text, the leaves of an open tree are sequences 1, 2, ...

llama.cpp keeps one cell per token for all layers and heads, so rows are whole positions. Removing cells leaves
holes that later tokens fill in any order; positions are stored in the cells and never renumbered. This class
mirrors which positions are held (numpy), and is the only place that calls the functions that change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattwise_devices.errors import BackendError, CorruptArtifact, PlanError
from wattwise_runtimes.contracts import KVView
from wattwise_runtimes.engines.llamacpp.kv_types import hadamard, rotation_size
from wattwise_runtimes.engines.llamacpp.log import last_words
from wattwise_runtimes.engines.llamacpp.native import Native
from wattwise_runtimes.engines.llamacpp.params import flash_attention
from wattwise_runtimes.engines.llamacpp.state import CacheRows, Layout, StateFormatError, build, parse
from wattwise_runtimes.formats.gguf_quants import dequantize
from wattwise_runtimes.formats.gguf_types import TensorType
from wattwise_runtimes.kv_blob import pack_rows, unpack_rows
from wattwise_runtimes.spec import ModelSpec

TEXT, SPARE = 0, 1  # sequences: the text; where restored rows arrive before they join it


@dataclass(frozen=True, slots=True)
class Traits:
    """What llama.cpp made of the model. neox_rope: half-split RoPE order, else adjacent pairs. two_caches: the
    sliding-window layers have a cache of their own."""

    neox_rope: bool
    two_caches: bool


@dataclass(frozen=True, slots=True)
class OpenTree:
    """A decoded tree batch that waits for `accept`: per node its position, its parent and a leaf below it."""

    positions: np.ndarray
    parents: Sequence[int]
    leaf_sequences: list[int]
    sequences: int


class LlamaKV:
    """KVStore of one llama.cpp context; see `contracts.KVStore` for what each method promises."""

    def __init__(
        self, native: Native, context: int, spec: ModelSpec, kv_type: TensorType, capacity: int, *, traits: Traits
    ) -> None:
        self._native, self._context, self._spec, self._type = native, context, spec, kv_type
        self._memory: int = native.memory(context)
        self._cells: int = native.cells(context)
        self._neox, self.sliding = traits.neox_rope, traits.two_caches
        self.layout = kv_layout(spec, kv_type, two_caches=self.sliding)
        self._held = np.zeros(capacity, np.int64)
        self._count = 0
        self._tree: OpenTree | None = None
        self._closed = False

    @property
    def length(self) -> int:
        return self._count + (len(self._tree.positions) if self._tree else 0)

    @property
    def positions(self) -> np.ndarray:
        held = self._held[: self._count]
        return np.concatenate([held, self._tree.positions]) if self._tree else held.copy()

    @property
    def next_position(self) -> int:
        return int(self._held[self._count - 1]) + 1 if self._count else 0

    @property
    def capacity_tokens(self) -> int:
        return len(self._held)

    @property
    def nbytes(self) -> int:
        return self._cells * self.layout.token_bytes

    def appended(self, first: int, rows: int) -> None:
        """Record that native code now holds `rows` more, at positions from `first`."""
        self._held[self._count : self._count + rows] = np.arange(first, first + rows) if rows > 1 else first
        self._count += rows

    def opened(self, tree: OpenTree) -> None:
        """Record a decoded tree; until `accept` or `clear` nothing else is possible."""
        self._tree = tree

    def share_text(self, sequences: int) -> None:
        """Make the text the prefix of sequences 1..n, which share its cells."""
        for sequence in range(1, sequences + 1):
            self._native.seq_cp(self._memory, TEXT, sequence, -1, -1)

    def forget_unrecorded(self, tree: OpenTree | None = None) -> None:
        """Remove whatever a failed or interrupted call left beyond the recorded rows."""
        self._tree = None
        self._remove(TEXT, self.next_position, -1)
        for sequence in range(1, tree.sequences + 1 if tree else 1):
            self._remove(sequence, -1, -1)

    def clear(self) -> None:
        self._check_open()
        self._native.memory_clear(self._memory, False)
        self._count, self._tree = 0, None

    def truncate(self, position: int) -> None:
        self.check_no_tree("truncate")
        self._remove(TEXT, max(0, position), -1)
        self._count = int(np.searchsorted(self._held[: self._count], position))

    def drop(self, positions: Sequence[int]) -> None:
        self.check_no_tree("drop")
        if self.sliding:
            raise PlanError(
                "rows cannot be dropped from a llama.cpp model with sliding-window layers: it would overwrite "
                "rows outside the window that a later rewind needs. Use the onnx engine for eviction.",
                clash=("KV eviction", "sliding-window layers on the llamacpp engine"),
            )
        held = self._held[: self._count]
        gone = np.unique(np.asarray(positions, np.int64))
        if not gone.size:
            return
        missing = np.setdiff1d(gone, held)
        if missing.size:
            raise ValueError(f"cannot drop positions {missing[:5].tolist()}: not held (held: {self.length} rows)")
        if gone[-1] == held[-1]:
            raise ValueError(f"cannot drop position {gone[-1]}: it is the newest row, decoding continues from it")
        breaks = np.flatnonzero(np.diff(gone) > 1) + 1
        for run in np.split(gone, breaks):
            self._remove(TEXT, int(run[0]), int(run[-1]) + 1)
        kept = held[~np.isin(held, gone)]
        self._held[: len(kept)] = kept
        self._count = len(kept)

    def drop_by_head(self, keep: np.ndarray) -> None:
        raise PlanError(
            "llama.cpp keeps one cell per token for all layers and heads, so heads cannot keep different rows. "
            "Use the onnx engine, or a policy at token level.",
            clash=("eviction by head", "the llamacpp engine"),
        )

    def shift(self, start: int, stop: int, by: int) -> None:
        raise PlanError("keys cannot be moved on the llamacpp engine", clash=("shift", "the llamacpp engine"))

    def accept(self, path: Sequence[int]) -> None:
        self._check_open()
        tree = self._tree
        if tree is None:
            raise ValueError("accept without a tree batch before it")
        nodes = [int(i) for i in path]
        for node, parent in zip(nodes, [-1, *nodes], strict=False):
            if not 0 <= node < len(tree.parents) or tree.parents[node] != parent:
                raise ValueError(
                    f"{nodes} is not a path from the root of the tree: node {node} is no child of {parent}"
                )
        if nodes:
            first, last = int(tree.positions[nodes[0]]), int(tree.positions[nodes[-1]])
            self._native.seq_cp(self._memory, tree.leaf_sequences[nodes[-1]], TEXT, first, last + 1)
        for sequence in range(1, tree.sequences + 1):
            self._remove(sequence, -1, -1)
        self._tree = None
        if nodes:
            self.appended(first, len(nodes))

    def view(self) -> KVView:
        self.check_no_tree("view")
        keys = None if self.sliding else _LazyKeys(self)
        return KVView(positions=self.positions, layers=self._spec.layers, keys=keys)

    def export(self, start: int = 0, stop: int | None = None) -> bytes:
        self.check_no_tree("export")
        stop = self.next_position if stop is None else stop
        parts: list[CacheRows] = []
        for cache in self.read_rows():
            order = np.argsort(cache.positions, kind="stable")
            ordered = cache.positions[order]
            parts.append(cache.select(order[(ordered >= start) & (ordered < stop)]))
        held = self._held[: self._count]
        kept = held[(held >= start) & (held < stop)]
        payload = build(parts, self.layout)
        return pack_rows(
            engine=self._engine_name(), spec=self._spec, kv_type=self._type.name, positions=kept, payload=payload
        )

    def restore(self, data: bytes) -> None:
        self.check_no_tree("restore")
        unpacked = unpack_rows(
            data, engine=self._engine_name(), spec=self._spec, kv_type=self._type.name, after=self.next_position
        )
        positions, payload = unpacked.positions, unpacked.payload
        state = np.frombuffer(payload, np.uint8)
        try:
            caches = parse(state, self.layout)
        except StateFormatError as error:
            raise CorruptArtifact("<kv>", error.field, error.value, error.limit) from error
        if not np.array_equal(caches[0].positions, positions):
            raise CorruptArtifact("<kv>", "positions of the rows", caches[0].positions[:4].tolist(), "as in the header")
        for cache in caches[1:]:  # of sliding layers: rows outside the window may be missing
            if not np.isin(cache.positions, positions).all():
                raise CorruptArtifact("<kv>", "positions of the sliding rows", "some not listed", "as in the header")
        if self._count + len(positions) > self.capacity_tokens:
            raise CorruptArtifact("<kv>", "rows", self._count + len(positions), self.capacity_tokens)
        if not len(positions):
            return
        if self._native.state_set(self._context, state.ctypes.data, len(state), SPARE) != len(state):
            self._remove(SPARE, -1, -1)
            raise BackendError(f"llama.cpp refused the restored rows: {last_words()}")
        self._native.seq_cp(self._memory, SPARE, TEXT, -1, -1)
        self._remove(SPARE, -1, -1)
        self._held[self._count : self._count + len(positions)] = positions
        self._count += len(positions)

    def read_rows(self) -> list[CacheRows]:
        """All rows of the text, copied out of native memory; in the order of the cells, per cache."""
        self._check_open()
        size = self._native.state_size(self._context, TEXT)
        state = np.empty(size, np.uint8)
        if self._native.state_get(self._context, state.ctypes.data, size, TEXT) != size:
            raise BackendError(f"llama.cpp did not give its KV rows: {last_words()}")
        try:
            return parse(state, self.layout)
        except StateFormatError as error:
            raise BackendError(
                f"this llama-cpp-python ({self._native.version}) stores KV rows in another way than expected: {error}"
            ) from error

    def keys_of(self, cache: CacheRows, layer: int) -> np.ndarray:
        """Keys of one layer, float32 [kv_heads, rows, head_dim], by position, in half-split RoPE order.

        Undoes what is llama.cpp's own: quantisation, the rotation of quantised keys, adjacent-pair RoPE order.
        """
        s = self._spec
        order = np.argsort(cache.positions, kind="stable")
        rows = dequantize(np.ascontiguousarray(cache.keys[layer][order]).reshape(-1), self._type.name)
        keys = rows.reshape(len(order), s.kv_heads, s.head_dim)
        width = rotation_size(self._type, s.head_dim)
        if width:
            keys = (keys.reshape(-1, width) @ hadamard(width)).reshape(keys.shape)
        if s.rope is not None and not self._neox:
            pairs = np.arange(s.rope.dims).reshape(-1, 2).T.reshape(-1)  # 0 2 4 ... 1 3 5 ...
            keys = keys[..., np.concatenate([pairs, np.arange(s.rope.dims, s.head_dim)])]
        return np.ascontiguousarray(keys.transpose(1, 0, 2))

    def close(self) -> None:
        """The context is about to be freed: nothing native may be called any more."""
        self._closed = True

    def check_no_tree(self, what: str) -> None:
        """Raise if a tree batch is still open."""
        self._check_open()
        if self._tree is not None:
            raise ValueError(f"{what} while a tree batch is open; call accept(path) or clear() first")

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this engine is closed")

    def _engine_name(self) -> str:
        return f"llamacpp {self._native.version}"  # the payload is that version's state format

    def _remove(self, sequence: int, start: int, stop: int) -> None:
        if not self._native.seq_rm(self._memory, sequence, start, stop):
            raise BackendError(f"llama.cpp could not remove positions {start}..{stop} of sequence {sequence}")


class _LazyKeys:
    """`KVView.keys`: copies the rows out of native memory on first use, then serves every layer from the copy."""

    def __init__(self, kv: LlamaKV) -> None:
        self._kv = kv
        self._rows: list[CacheRows] | None = None

    def __call__(self, layer: int) -> np.ndarray:
        if self._rows is None:
            self._rows = self._kv.read_rows()
        return self._kv.keys_of(self._rows[0], layer)


def kv_layout(spec: ModelSpec, kv_type: TensorType, *, two_caches: bool) -> Layout:
    """How one token is stored: full layers first, sliding layers in a second cache where llama.cpp has one."""
    layers = range(spec.layers)
    full = tuple(i for i in layers if not (two_caches and spec.is_sliding(i)))
    sliding = tuple(i for i in layers if two_caches and spec.is_sliding(i))
    return Layout(
        layers=(full, sliding) if two_caches else (full,),
        type_number=kv_type.number,
        row_bytes=kv_type.nbytes(spec.kv_heads * spec.head_dim),
        value_bytes=0 if flash_attention(kv_type.name) else kv_type.block_bytes,
    )
