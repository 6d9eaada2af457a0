"""The native batch, allocated once: numpy arrays that a `llama_batch` struct points into.

Positions and sequences are always explicit. A chain belongs to sequence 0; a tree node to every leaf below it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from wattwise_runtimes.engines.llamacpp.native import Native


class NativeBatch:
    """Room for `capacity` tokens, each in up to `sequences` sequences. `struct` is what llama_decode takes."""

    def __init__(self, native: Native, capacity: int, sequences: int) -> None:
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.wanted = np.zeros(capacity, np.int8)
        self._counts = np.ones(capacity, np.int32)
        self._ids = np.zeros((capacity, sequences), np.int32)
        pointers = self._ids.ctypes.data + np.arange(capacity, dtype=np.uint64) * np.uint64(self._ids.strides[0])
        self._pointers = pointers.astype(np.uint64)
        self._in_tree = 0
        struct = native.api.llama_batch()
        fields = {
            "token": self.tokens, "pos": self.positions, "n_seq_id": self._counts, "seq_id": self._pointers,
            "logits": self.wanted,
        }  # fmt: skip
        kinds = dict(struct._fields_)
        for name, array in fields.items():
            setattr(struct, name, ctypes.cast(array.ctypes.data, kinds[name]))
        self.struct: Any = struct

    def one(self, token: int, position: int, wanted: bool) -> None:
        """One token of the text: the decode path, no allocation."""
        if self._in_tree:
            self._leave_tree()
        self.tokens[0] = token
        self.positions[0] = position
        self.wanted[0] = wanted
        self.struct.n_tokens = 1

    def chain(self, tokens: np.ndarray, first_position: int, wanted: Sequence[int]) -> None:
        """Consecutive tokens of the text; wanted: indices whose logits are asked for."""
        if self._in_tree:
            self._leave_tree()
        n = len(tokens)
        self.tokens[:n] = tokens
        self.positions[:n] = np.arange(first_position, first_position + n)
        self._want(n, wanted)

    def tree(
        self, tokens: np.ndarray, positions: np.ndarray, wanted: Sequence[int], below: Sequence[Sequence[int]]
    ) -> None:
        """Nodes of a tree; below[i]: the leaf sequences that pass through node i."""
        n = len(tokens)
        self.tokens[:n] = tokens
        self.positions[:n] = positions
        for i, ids in enumerate(below):
            self._counts[i] = len(ids)
            self._ids[i, : len(ids)] = ids
        self._in_tree = n
        self._want(n, wanted)

    def _want(self, n: int, wanted: Sequence[int]) -> None:
        self.wanted[:n] = 0
        if len(wanted):
            self.wanted[np.asarray(wanted)] = 1
        self.struct.n_tokens = n

    def _leave_tree(self) -> None:
        self._counts[: self._in_tree] = 1
        self._ids[: self._in_tree, 0] = 0
        self._in_tree = 0
