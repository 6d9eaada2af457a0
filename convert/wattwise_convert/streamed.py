"""Weights for the reference engine that stay on disk: a matrix is read block by block each time it multiplies.

So a model of any size can be run once over a text in little memory. Slow on purpose: every forward call reads all
weights, which is what certifying needs and nothing else should do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from wattwise_convert.checkpoint import TensorSource


class StreamedWeights(Mapping[str, Any]):
    """Canonical name -> weight. Vectors are arrays in memory, matrices are `StreamedMatrix`."""

    def __init__(self, tensors: Mapping[str, TensorSource]) -> None:
        self._weights: dict[str, Any] = {
            name: StreamedMatrix(source) if len(source.shape) == 2 else source.read()
            for name, source in tensors.items()
        }

    def __getitem__(self, name: str) -> Any:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class StreamedMatrix:
    """What the reference engine does with a matrix: its shape, rows by index, and x @ matrix.T."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self.shape = source.shape
        self.nbytes = 0  # held in memory

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        wanted, where = np.unique(rows, return_inverse=True)
        return np.concatenate([self._source.read(int(row), int(row) + 1) for row in wanted])[where]

    @property
    def T(self) -> _Transposed:
        """Only good for multiplying from the left."""
        return _Transposed(self._source)


class _Transposed:
    __array_ufunc__ = None  # numpy leaves `x @ this` to __rmatmul__

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    def __rmatmul__(self, x: np.ndarray) -> np.ndarray:
        out = np.empty((*x.shape[:-1], self._source.shape[0]), np.float32)
        for start, rows in self._source.blocks():
            out[..., start : start + len(rows)] = x @ rows.T
        return out
