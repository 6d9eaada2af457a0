"""Checkpoint: a model in canonical form, its weights read lazily, a few rows at a time.

Every source becomes one, every lowering starts from one. The canonical form (names, layouts) is defined in
`wattwise_runtimes.spec`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattwise_runtimes.spec import ModelSpec
from wattwise_runtimes.text.tokenizer import Tokenizer

ROW_BLOCK_BYTES = 64 << 20  # of float32: how much of a tensor is in memory while it is lowered


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One weight, not yet read.

    shape: canonical, [out, in] for a matrix. dtype: how the source stores it ("f32", "f16", "bf16", "q4_0", ...).
    read(start, stop) gives rows start..stop (of the first axis) as a new float32 array [stop - start, ...].
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read_rows: Callable[[int, int], np.ndarray]

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows of the tensor as float32, all of them by default."""
        return self.read_rows(start, self.shape[0] if stop is None else stop)

    def blocks(self, multiple: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) over the whole tensor, in blocks of a multiple of `multiple` rows."""
        row_bytes = 4 * int(np.prod(self.shape[1:], dtype=np.int64))
        step = max(1, ROW_BLOCK_BYTES // max(1, row_bytes * multiple)) * multiple
        for start in range(0, self.shape[0], step):
            yield start, self.read(start, min(start + step, self.shape[0]))

    @classmethod
    def from_array(cls, name: str, array: np.ndarray, dtype: str = "f32") -> TensorSource:
        """A source over an array in memory."""
        return cls(name, tuple(array.shape), dtype, lambda a, b: np.array(array[a:b], dtype=np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A whole model: what it is, its weights by canonical name, its tokenizer (None: ids only).

    tensors holds exactly the names and shapes of `spec.tensor_shapes()`. origin: file or folder it came from.
    files: every file that was read, for the certificate's hashes.
    """

    spec: ModelSpec
    tensors: Mapping[str, TensorSource]
    tokenizer: Tokenizer | None
    origin: Path
    files: tuple[Path, ...] = ()
