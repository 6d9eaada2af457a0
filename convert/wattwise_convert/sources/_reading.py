"""Canonical rows out of a safetensors file: parts of fused tensors, transposed matrices, shifted norms."""

from __future__ import annotations

import numpy as np

from wattwise_convert.archs._common import Place
from wattwise_convert.checkpoint import TensorSource
from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.formats.safetensors import SafetensorsFile

WEIGHT_TYPES = ("f32", "f16", "bf16", "f64")
_CHUNK_BYTES = 16 << 20  # of a transposed matrix that is in memory at once


def source_of(weights: SafetensorsFile, stored: str, place: Place, name: str, shape: tuple[int, ...]) -> TensorSource:
    """The tensor `name` of shape `shape`, read from the tensor `stored` as `place` says."""
    info = weights.tensors[stored]
    rows = place.of or shape[0]
    expected = (*shape[1:], rows) if place.transposed else (rows, *shape[1:])
    if info.shape != expected:
        raise CorruptArtifact(weights.path, f"shape of tensor {stored!r}", info.shape, f"{expected} by config.json")
    if info.dtype not in WEIGHT_TYPES:
        raise UnsupportedArchitecture(
            f"{weights.path}: tensor {stored!r} is stored as {info.dtype}; known are {', '.join(WEIGHT_TYPES)}. "
            "Quantised checkpoints are not supported here: take the original one."
        )

    def read_rows(start: int, stop: int) -> np.ndarray:
        first, last = place.first + start, place.first + stop
        if place.transposed:
            values = _columns(weights, stored, first, last)
        else:
            values = weights.read_rows(stored, first, last)
        return values + np.float32(place.plus) if place.plus else values

    return TensorSource(name, shape, info.dtype, read_rows)


def _columns(weights: SafetensorsFile, stored: str, first: int, last: int) -> np.ndarray:
    """Columns first..last of a stored [in, out] matrix as rows, without holding all of it."""
    rows, columns = weights.tensors[stored].shape
    out = np.empty((last - first, rows), np.float32)
    step = max(1, _CHUNK_BYTES // (4 * columns))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        out[:, start:stop] = weights.read_rows(stored, start, stop)[:, first:last].T
    return out
