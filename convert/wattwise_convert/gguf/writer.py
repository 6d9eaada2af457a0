"""Writes GGUF version 3, little-endian: the directory first, then the tensors one after another, a few rows at a time.

Sizes follow from shapes and types, so that nothing has to be known about the data when the directory is written.
Spec: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wattwise_convert.gguf.quantize import encode, overflows
from wattwise_convert.progress import Progress
from wattwise_devices.errors import ConvertError
from wattwise_runtimes.formats.gguf_types import ARRAY, BOOL, STRING, TYPE_BY_NAME, VALUE_TYPES

ALIGNMENT = 32
_BLOCK_BYTES = 16 << 20  # of float32 rows in memory at a time
_U32, _F32 = 4, 6
_ARRAY_TYPES = {dtype: number for number, (_, dtype) in VALUE_TYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutTensor:
    """One tensor to write. unit: rows are asked for in multiples of this (whole heads), the last ones excepted."""

    name: str
    shape: tuple[int, ...]
    type: str
    read_rows: Callable[[int, int], np.ndarray]
    unit: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without padding."""
        return TYPE_BY_NAME[self.type].nbytes(prod(self.shape))


def write_gguf(path: Path, fields: Mapping[str, Any], tensors: Sequence[OutTensor], progress: Progress) -> None:
    """Write the whole file.

    Values of fields: str, bool, int (uint32), float (float32), list of str, numpy arrays. Other integer or float
    widths can be given as numpy scalars.
    """
    progress.expect(sum(4 * prod(t.shape) for t in tensors))
    with path.open("wb") as file:
        file.write(_head(fields, tensors))
        _pad(file)
        for tensor in tensors:
            _write_tensor(file, tensor, progress)
            _pad(file)


def _head(fields: Mapping[str, Any], tensors: Sequence[OutTensor]) -> bytes:
    out = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(fields)))
    for key, value in fields.items():
        out += _text(key) + _value(key, value)
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        out += _text(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        out += struct.pack("<IQ", TYPE_BY_NAME[tensor.type].number, offset)
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return bytes(out)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, int):
        if not 0 <= value < 1 << 32:
            raise ConvertError(f"GGUF field {key!r} is {value}; it must fit into 32 bits without a sign")
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(_text(text) for text in value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype in _ARRAY_TYPES:
        number = _ARRAY_TYPES[value.dtype]
        if isinstance(value, np.generic):
            return struct.pack("<I", number) + value.tobytes()
        return struct.pack("<IIQ", ARRAY, number, len(value)) + value.tobytes()
    raise ConvertError(f"GGUF field {key!r} has a value of type {type(value).__name__}, which GGUF does not have")


def _write_tensor(file: BinaryIO, tensor: OutTensor, progress: Progress) -> None:
    rows, row = tensor.shape[0], prod(tensor.shape[1:])
    step = max(1, _BLOCK_BYTES // (4 * row * tensor.unit)) * tensor.unit
    block = TYPE_BY_NAME[tensor.type].block
    if row % block and (rows * row) % block:
        raise ConvertError(f"tensor {tensor.name!r} has rows of {row}, which {tensor.type} cannot hold")
    for start in range(0, rows, step):
        values = tensor.read_rows(start, min(start + step, rows))
        _check_values(tensor, values)
        file.write(encode(values, tensor.type).data)
        progress.add(4 * values.size)


def _check_values(tensor: OutTensor, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise ConvertError(f"tensor {tensor.name!r} has {bad} values that are infinite or not a number")
    if overflows(values, tensor.type):
        raise ConvertError(
            f"tensor {tensor.name!r} has a value of {float(np.abs(values).max()):.6g}, too large for {tensor.type}. "
            "Take bf16 or f32."
        )


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
