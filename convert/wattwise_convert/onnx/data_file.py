"""The external data file of an ONNX model, written front to back, and the tensor entries that point into it.

No tensor is ever held whole: callers hand over chunks. Tensors start on page borders, so that a runtime can map
them instead of copying them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
from onnx import TensorProto

PAGE_BYTES = 4096
_WIDTHS: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.UINT8: 1, TensorProto.INT64: 8}


class DataFile:
    """Writes `path`; `on_bytes` hears of every chunk written."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None] | None = None) -> None:
        self.path = path
        self._file = path.open("wb")
        self._on_bytes = on_bytes

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def add(self, name: str, dtype: int, dims: Sequence[int], chunks: Iterable[np.ndarray]) -> TensorProto:
        """Write one tensor from its chunks, in order; the entry that points at it."""
        offset = self._align()
        wanted = prod(dims) * _WIDTHS[dtype]
        written = 0
        for chunk in chunks:
            data = np.ascontiguousarray(chunk)
            self._file.write(data.data)
            written += data.nbytes
            if self._on_bytes is not None:
                self._on_bytes(data.nbytes)
        if written != wanted:
            raise ValueError(f"tensor {name}: {written} bytes written, shape {tuple(dims)} needs {wanted}")
        return external_tensor(name, dtype, dims, self.path.name, offset, written)

    def _align(self) -> int:
        position = self._file.tell()
        padding = -position % PAGE_BYTES
        self._file.write(b"\0" * padding)
        return position + padding


def external_tensor(name: str, dtype: int, dims: Sequence[int], location: str, offset: int, length: int) -> TensorProto:
    """A tensor entry without bytes of its own."""
    tensor = TensorProto(name=name, data_type=dtype, data_location=TensorProto.EXTERNAL)
    tensor.dims.extend(dims)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def same_bytes(tensor: TensorProto, name: str, dims: Sequence[int]) -> TensorProto:
    """Another entry for the same bytes, under another name and shape (tied weights are stored once)."""
    twin = TensorProto()
    twin.CopyFrom(tensor)
    twin.name = name
    del twin.dims[:]
    twin.dims.extend(dims)
    if prod(twin.dims) != prod(tensor.dims):
        raise ValueError(f"{name}: shape {tuple(dims)} does not hold as many elements as {tuple(tensor.dims)}")
    return twin
