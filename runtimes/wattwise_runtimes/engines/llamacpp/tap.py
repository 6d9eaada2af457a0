"""Attention weights, copied out of llama.cpp's graph while it is computed.

Without flash attention every layer has a node `kq_soft_max-<layer>`, float32 [heads, tokens, cells], and llama.cpp
asks an evaluation callback before every node whether it wants to see it. The tap wants these nodes of the last chunk
of a forward call, and nothing of other calls. Its memory is allocated at once and touched as far as it is used:
4 x layers x heads x tokens of a chunk x cells bytes, so a small chunk is what keeps it small.

Which cells are in use stands in the mask of the last token, the second source of the softmax: 0 where it may look. In
the weights themselves it cannot be seen for sure, they may vanish in rounding. Which position each of these cells has
is the KV store's affair.

The callback runs in the thread that computes. That must not be the main thread, where Ctrl-C could be raised in the
callback: ctypes would swallow it and answer False, which silently cuts the graph. An error in the callback is kept
and raised when the graph is done.

What it costs, measured with 8 layers, 294 nodes and one thread, where a token takes 1.7 ms: 0.1 ms for a native call
that is let pass, 0.3 ms for one token that is listened to (256 rows), and too little to tell from noise for a chunk of
64 tokens. Showing one token's weights over 256 to 2048 rows costs 0.3 to 0.4 ms once, to find the cells, and 0.04 to
0.1 ms a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wattwise_devices.errors import BackendError, PlanError
from wattwise_runtimes.contracts import LoadSpec
from wattwise_runtimes.engines.llamacpp.ggml import RunningTensors
from wattwise_runtimes.engines.llamacpp.guards import padded_cells
from wattwise_runtimes.engines.llamacpp.native import Native
from wattwise_runtimes.engines.llamacpp.params import chunk_tokens
from wattwise_runtimes.spec import ModelSpec

_NODE = b"kq_soft_max-"
_MASK = 1  # which source of the softmax


def tap_bytes(spec: ModelSpec, load: LoadSpec) -> int:
    """Bytes of all weights of a chunk over a full context; 0 where no scores are wanted."""
    return spec.layers * spec.heads * _head_bytes(load) if load.attention_scores else 0


def view_bytes(spec: ModelSpec, load: LoadSpec) -> int:
    """Most bytes that showing one layer of them takes: its copy, and one head of it on the way."""
    return (spec.heads + 1) * _head_bytes(load) if load.attention_scores else 0


def _room(spec: ModelSpec, load: LoadSpec) -> np.ndarray:
    nbytes = tap_bytes(spec, load)
    try:
        return np.empty(nbytes // 4, np.float32)
    except MemoryError as error:
        raise PlanError(
            f"attention scores of {chunk_tokens(load)} tokens over {padded_cells(load.context)} cells take {nbytes} "
            "bytes, which this machine does not give. Ask for a smaller chunk.",
            clash=("attention_scores", f"chunk {load.chunk}"),
        ) from error


def _head_bytes(load: LoadSpec) -> int:
    return 4 * chunk_tokens(load) * padded_cells(load.context)


@dataclass(frozen=True, slots=True)
class Scores:
    """Attention of one chunk, valid until the tap listens again.

    pieces: by native call, float32 [layers, heads, queries, cells]; later calls may know more cells.
    used: int64 [rows], the cells that hold the text after the last call, increasing.
    """

    pieces: tuple[np.ndarray, ...]
    used: np.ndarray

    def of(self, layer: int, cells: np.ndarray) -> np.ndarray:
        """float32 [heads, queries, rows] of one layer, the rows in the order of `cells`, a copy."""
        blocks = [piece[layer] for piece in self.pieces]
        out = np.zeros((blocks[0].shape[0], sum(block.shape[1] for block in blocks), len(cells)), np.float32)
        first = 0
        for block in blocks:
            known = cells < block.shape[2]
            for head, weights in enumerate(block):  # one by one: the selection is a copy, and a layer can be large
                out[head][first : first + block.shape[1], known] = weights[:, cells[known]]
            first += block.shape[1]
        return out


class Tap:
    """The evaluation callback of one context, and what it has copied."""

    def __init__(self, native: Native, spec: ModelSpec, load: LoadSpec) -> None:
        self._tensors = RunningTensors(native)
        self._layers, self._heads = spec.layers, spec.heads
        self._room = _room(spec, load)
        self._address = self._room.ctypes.data
        self._mask = np.empty(padded_cells(load.context), np.float32)
        self._nodes: set[int] | None = set()  # addresses, until the layout of a tensor is known to be as expected
        self._pieces: list[np.ndarray] = []
        self._filled = 0  # elements of _room
        self._queries = self._cells = 0  # of the native call that is listened to
        self._copied: set[int] = set()
        self._error: BaseException | None = None
        self.callback: Any = native.api.ggml_backend_sched_eval_callback(self._on_node)

    def forget(self) -> None:
        """Start a new chunk."""
        self._pieces, self._filled = [], 0

    def listen(self, queries: int) -> None:
        """Copy the weights of the next native call, which has so many tokens; 0: let it pass."""
        self._queries, self._cells = queries, 0
        self._copied.clear()
        self._error = None

    def heard(self) -> Scores:
        """The chunk so far, after a native call that was listened to. Raises BackendError where a layer is missing."""
        if self._error is not None:
            raise BackendError(f"attention weights could not be read: {self._error}") from self._error
        if len(self._copied) != self._layers:
            raise BackendError(f"llama.cpp showed the attention of {len(self._copied)} of {self._layers} layers")
        shape = (self._layers, self._heads, self._queries, self._cells)
        end = self._filled + self._layers * self._heads * self._queries * self._cells
        self._pieces.append(self._room[self._filled : end].reshape(shape))
        self._filled = end
        return Scores(tuple(self._pieces), np.flatnonzero(self._mask[: self._cells] == 0))

    def _on_node(self, tensor: int, ask: bool, _data: object) -> bool:
        """Asked before a node: whether it is wanted. Told after it: whether to go on, always."""
        if not self._queries:
            return False
        try:
            if not ask:
                self._copy(tensor)
                return True
            if self._nodes is not None:
                self._nodes.add(tensor)
            return self._tensors.name(tensor).startswith(_NODE)
        except BaseException as error:  # must not unwind through native frames; `heard` raises it
            self._error = error
            return not ask

    def _copy(self, tensor: int) -> None:
        tensors, rows = self._tensors, self._heads * self._queries
        layer = int(tensors.name(tensor).removeprefix(_NODE))
        nbytes = tensors.nbytes(tensor)
        cells = nbytes // (4 * rows)
        if not self._copied:
            self._read_mask(tensor, cells)
        is_as_expected = (
            tensors.rows(tensor) == rows
            and nbytes == 4 * tensors.elements(tensor) == 4 * rows * self._cells
            and tensors.is_contiguous(tensor)
            and 0 <= layer < self._layers
        )
        if not is_as_expected:
            raise BackendError(
                f"the weights of layer {layer} are {nbytes} bytes in {tensors.rows(tensor)} rows, "
                f"expected {rows} rows of {self._cells} float32"
            )
        start = self._filled + layer * rows * cells
        if start + rows * cells > len(self._room):
            raise BackendError(f"attention over {cells} cells does not fit the {len(self._room)} weights planned for")
        tensors.copy(tensor, self._address + 4 * start, 0, nbytes)
        self._copied.add(layer)

    def _read_mask(self, tensor: int, cells: int) -> None:
        """Where the last token may look, for all layers."""
        tensors = self._tensors
        if self._nodes is not None:
            if not tensors.has_known_layout(tensor, self._nodes):
                raise BackendError("tensors are laid out in another way than this program knows")
            self._nodes = None
        mask = tensors.source(tensor, _MASK)
        row_bytes = 4 * cells
        if cells > len(self._mask) or tensors.nbytes(mask) != self._queries * row_bytes:
            raise BackendError(
                f"the mask has {tensors.nbytes(mask)} bytes, expected {self._queries} rows of {row_bytes} bytes"
            )
        tensors.copy(mask, self._mask.ctypes.data, (self._queries - 1) * row_bytes, row_bytes)
        self._cells = cells
