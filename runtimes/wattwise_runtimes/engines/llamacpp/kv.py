"""The KV store over llama.cpp's memory: sequence 0 is the text, the leaves of an open tree are sequences 1, 2, ...

llama.cpp keeps one cell per token for all layers and heads, so rows are whole positions. Removing cells leaves
holes that later tokens fill in any order; positions are stored in the cells and renumbered only by `shift`. This
class mirrors which positions are held (numpy), and is the only place that calls the functions that change them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattwise_devices.errors import BackendError, CorruptArtifact, PlanError
from wattwise_runtimes.contracts import KVView, LoadSpec
from wattwise_runtimes.engines.llamacpp import log, shift
from wattwise_runtimes.engines.llamacpp.guards import MAX_CONTEXT
from wattwise_runtimes.engines.llamacpp.keys import KeyForm, LazyKeys
from wattwise_runtimes.engines.llamacpp.kv_types import kv_type, rotation_size
from wattwise_runtimes.engines.llamacpp.native import Native
from wattwise_runtimes.engines.llamacpp.params import flash_attention
from wattwise_runtimes.engines.llamacpp.state import (
    CacheRows,
    Layout,
    StateFormatError,
    build,
    head_bytes,
    parse,
    parse_head,
)
from wattwise_runtimes.engines.llamacpp.tap import Scores
from wattwise_runtimes.kv_blob import pack_rows, unpack_rows
from wattwise_runtimes.spec import ModelSpec

TEXT, SPARE = 0, 1  # sequences: the text; where restored rows arrive before they join it
_END_OF_BUFFER = "unexpectedly reached end of buffer"  # llama.cpp's words


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
    """KVStore of one llama.cpp context; see `contracts.KVStore` for what each method promises.

    compute: decodes a `llama_batch` and gives the status; nothing may stop it.
    """

    def __init__(
        self, native: Native, context: int, spec: ModelSpec, load: LoadSpec, *, traits: Traits,
        compute: Callable[[Any], int],
    ) -> None:  # fmt: skip
        self._native, self._context, self._spec, self._compute = native, context, spec, compute
        self._memory: int = native.memory(context)
        self._cells: int = native.cells(context)
        self._type, self.sliding = kv_type(load.kv_type), traits.two_caches
        self.layout = kv_layout(spec, load, two_caches=self.sliding)
        rotation = rotation_size(self._type, spec.head_dim)
        self._keys = KeyForm(spec=spec, kv_type=self._type, rotation=rotation, neox_rope=traits.neox_rope)
        self._shift_refusal = shift.refusal(spec, load)
        self._held = np.zeros(load.context, np.int64)
        self._count = 0
        self._tree: OpenTree | None = None
        self._scores: Scores | None = None  # of the newest rows; None once any row has changed
        self._score_cells: np.ndarray | None = None  # their cells by position, once somebody has asked
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
        self._scores = None

    def opened(self, tree: OpenTree) -> None:
        """Record a decoded tree; until `accept` or `clear` nothing else is possible."""
        self._tree = tree
        self._scores = None

    def show(self, scores: Scores | None) -> None:
        """Attention of the rows that were appended last, for views until rows change again."""
        self._scores, self._score_cells = scores, None

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
        self._count, self._tree, self._scores = 0, None, None

    def truncate(self, position: int) -> None:
        self.check_no_tree("truncate")
        self._remove(TEXT, max(0, position), -1)
        self._scores = None
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
        self._scores = None
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
        self.check_no_tree("shift")
        if self._shift_refusal is not None:
            raise self._shift_refusal.with_traceback(None)
        held = self._held[: self._count]
        is_moved = (held >= start) & (held < stop)
        if not is_moved.any() or by == 0:
            return
        moved = np.where(is_moved, held + by, held)
        if moved[0] < 0 or moved[-1] >= MAX_CONTEXT or np.any(np.diff(moved) <= 0):
            raise ValueError(
                f"moving positions {start}..{stop} by {by} would put rows out of order, below 0 or beyond {MAX_CONTEXT}"
            )
        first, last = held[is_moved][[0, -1]]
        self._scores = None
        self._native.seq_add(self._memory, TEXT, int(first), int(last) + 1, by)
        held[:] = moved
        try:
            shift.turn_keys(self._native, self._compute, SPARE)
        except BackendError:
            self.clear()  # rows whose keys belong to other positions would be worse than none
            raise
        finally:
            self._remove(SPARE, -1, -1)

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
        keys = None if self.sliding else LazyKeys(self.read_rows, self._keys)
        return KVView(positions=self.positions, layers=self._spec.layers, keys=keys, attention=self._attention())

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
            raise BackendError(f"llama.cpp refused the restored rows: {log.last_words()}")
        self._native.seq_cp(self._memory, SPARE, TEXT, -1, -1)
        self._remove(SPARE, -1, -1)
        self._scores = None
        self._held[self._count : self._count + len(positions)] = positions
        self._count += len(positions)

    def read_rows(self) -> list[CacheRows]:
        """All rows of the text, copied out of native memory; in the order of the cells, per cache."""
        self._check_open()
        size = self._native.state_size(self._context, TEXT)
        state = np.empty(size, np.uint8)
        if self._native.state_get(self._context, state.ctypes.data, size, TEXT) != size:
            raise BackendError(f"llama.cpp did not give its KV rows: {log.last_words()}")
        try:
            return parse(state, self.layout)
        except StateFormatError as error:
            raise self._foreign_state(error) from error

    def _attention(self) -> Callable[[int], np.ndarray] | None:
        """`KVView.attention` of the newest rows."""
        scores = self._scores
        if scores is None:
            return None
        return lambda layer: scores.of(layer, self._cells_by_position(scores))

    def _cells_by_position(self, scores: Scores) -> np.ndarray:
        """The cells of the rows held, int64 [rows], by position.

        A saved state begins with the positions in the order of the cells, without the cells' numbers: those come from
        the scores. The buffer ends after them, so llama.cpp stops there and copies no rows.
        """
        self._check_open()
        if scores is not self._scores:
            raise ValueError("rows have changed since this view was made: its attention is gone")
        if self._score_cells is None:
            head = np.zeros(head_bytes(self._count), np.uint8)
            with log.expecting(_END_OF_BUFFER):
                self._native.state_get(self._context, head.ctypes.data, len(head), TEXT)
            try:
                positions = parse_head(head)
            except StateFormatError as error:
                raise self._foreign_state(error) from error
            order = np.argsort(positions)
            held = self._held[: self._count]
            if len(scores.used) != len(positions) or not np.array_equal(positions[order], held):
                raise BackendError(
                    f"llama.cpp holds {len(positions)} rows in {len(scores.used)} visible cells, expected {len(held)}"
                )
            self._score_cells = scores.used[order]
        return self._score_cells

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

    def _foreign_state(self, error: StateFormatError) -> BackendError:
        return BackendError(
            f"this llama-cpp-python ({self._native.version}) stores KV rows in another way than expected: {error}"
        )

    def _engine_name(self) -> str:
        return f"llamacpp {self._native.version}"  # the payload is that version's state format

    def _remove(self, sequence: int, start: int, stop: int) -> None:
        if not self._native.seq_rm(self._memory, sequence, start, stop):
            raise BackendError(f"llama.cpp could not remove positions {start}..{stop} of sequence {sequence}")


def kv_layout(spec: ModelSpec, load: LoadSpec, *, two_caches: bool) -> Layout:
    """How one token is stored: full layers first, sliding layers in a second cache where llama.cpp has one."""
    kind = kv_type(load.kv_type)
    layers = range(spec.layers)
    full = tuple(i for i in layers if not (two_caches and spec.is_sliding(i)))
    sliding = tuple(i for i in layers if two_caches and spec.is_sliding(i))
    return Layout(
        layers=(full, sliding) if two_caches else (full,),
        type_number=kind.number,
        row_bytes=kind.nbytes(spec.kv_heads * spec.head_dim),
        value_bytes=0 if flash_attention(load) else kind.block_bytes,
    )
