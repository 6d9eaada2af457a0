"""llama.cpp's saved state of one sequence, taken apart and put together again in numpy.

    u32 magic | i32 sequence | per cache (one; two for models with sliding-window layers):
      u32 streams (1) | u32 rows | rows x (i32 position, u32 1, i32 sequence) | u32 v transposed | u32 layers
      | layers x (i32 type, u64 row bytes, rows of keys) | layers x values
    values: (i32 type, u64 row bytes, rows), or, transposed, (i32 type, u32 element bytes, u32 row elements,
      per element of a row: that element of every row)

That is how 0.3.36 writes it with one unified stream; values are transposed where flash attention is off. Every
count is checked against what this engine must have written, so a changed format is noticed, and bytes from
elsewhere never reach native code unless they have exactly this shape.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

_MAGIC = 0xAF143CD8
_CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])


class StateFormatError(ValueError):
    """The bytes are not a state of this layout. `field`, `value`, `limit` as in CorruptArtifact."""

    def __init__(self, field: str, value: object, limit: object) -> None:
        self.field, self.value, self.limit = field, value, limit
        super().__init__(f"{field} is {value}, expected {limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a state of one engine must look like. layers: per cache, the model layers it holds."""

    layers: tuple[tuple[int, ...], ...]
    type_number: int
    row_bytes: int  # of the keys, and equally of the values, of one token in one layer
    value_bytes: int = 0  # of one element, where values are stored transposed; 0: they are not

    @property
    def token_bytes(self) -> int:
        """Bytes of one token over all layers, without cell metadata."""
        return 2 * self.row_bytes * sum(len(cache) for cache in self.layers)


@dataclass(frozen=True, slots=True)
class CacheRows:
    """Rows of one cache: positions int32 [rows]; keys and values per layer, uint8 [rows, row bytes]."""

    positions: np.ndarray
    keys: list[np.ndarray]
    values: list[np.ndarray]

    def select(self, rows: np.ndarray) -> CacheRows:
        """Copy of some rows, in the order given."""
        return CacheRows(self.positions[rows], [k[rows] for k in self.keys], [v[rows] for v in self.values])


class _Reader:
    def __init__(self, data: np.ndarray) -> None:
        self._data, self._at = data, 0

    def number(self, code: str, field: str, expected: int | None = None) -> int:
        raw = self.take(struct.calcsize(code), field)
        (value,) = struct.unpack(code, raw.tobytes())
        if expected is not None and value != expected:
            raise StateFormatError(field, value, expected)
        return value

    def take(self, nbytes: int, field: str) -> np.ndarray:
        left = len(self._data) - self._at
        if nbytes > left:
            raise StateFormatError(field, f"{nbytes} bytes long", f"at most {left}")
        self._at += nbytes
        return self._data[self._at - nbytes : self._at]

    def end(self) -> None:
        if self._at != len(self._data):
            raise StateFormatError("bytes after the last layer", len(self._data) - self._at, 0)


def parse(data: np.ndarray, layout: Layout) -> list[CacheRows]:
    """The rows of every cache as views into `data` (uint8), in the order of the cells."""
    reader = _Reader(data)
    reader.number("<I", "magic", _MAGIC)
    reader.number("<i", "sequence")
    caches = [_parse_cache(reader, layout, len(layers)) for layers in layout.layers]
    reader.end()
    return caches


def head_bytes(rows: int) -> int:
    """Size of the part of a state with one cache that lists its cells."""
    return struct.calcsize("<IiII") + rows * _CELL.itemsize


def parse_head(data: np.ndarray) -> np.ndarray:
    """Positions of the first cache's rows in the order of the cells, int32 [rows], from the beginning of a state."""
    reader = _Reader(data)
    reader.number("<I", "magic", _MAGIC)
    reader.number("<i", "sequence")
    return _parse_cells(reader)


def _parse_cells(reader: _Reader) -> np.ndarray:
    reader.number("<I", "streams", 1)
    rows = reader.number("<I", "rows")
    cells = reader.take(rows * _CELL.itemsize, "cells").view(_CELL)
    if np.any(cells["sequences"] != 1) or np.any(cells["position"] < 0):
        raise StateFormatError("cells", "a cell of several sequences or a negative position", "one sequence each")
    return cells["position"].copy()


def _parse_cache(reader: _Reader, layout: Layout, layers: int) -> CacheRows:
    positions = _parse_cells(reader)
    rows = len(positions)
    if rows == 0:
        empty = np.zeros((0, layout.row_bytes), np.uint8)
        return CacheRows(positions, [empty] * layers, [empty] * layers)
    reader.number("<I", "v transposed", int(layout.value_bytes > 0))
    reader.number("<I", "layers", layers)
    keys = [_parse_rows(reader, layout, rows, "keys") for _ in range(layers)]
    read_values = _parse_transposed if layout.value_bytes else _parse_rows
    values = [read_values(reader, layout, rows, "values") for _ in range(layers)]
    return CacheRows(positions, keys, values)


def _parse_rows(reader: _Reader, layout: Layout, rows: int, what: str) -> np.ndarray:
    reader.number("<i", f"type of {what}", layout.type_number)
    reader.number("<Q", f"row bytes of {what}", layout.row_bytes)
    return reader.take(rows * layout.row_bytes, what).reshape(rows, layout.row_bytes)


def _parse_transposed(reader: _Reader, layout: Layout, rows: int, what: str) -> np.ndarray:
    size = layout.value_bytes
    elements = layout.row_bytes // size
    reader.number("<i", f"type of {what}", layout.type_number)
    reader.number("<I", f"element bytes of {what}", size)
    reader.number("<I", f"row elements of {what}", elements)
    block = reader.take(rows * layout.row_bytes, what).reshape(elements, rows, size)
    return block.transpose(1, 0, 2).reshape(rows, layout.row_bytes)


def build(caches: list[CacheRows], layout: Layout) -> bytes:
    """The bytes that llama.cpp would have written for these rows."""
    parts: list[bytes] = [struct.pack("<Ii", _MAGIC, 0)]
    tag = struct.pack("<iQ", layout.type_number, layout.row_bytes)
    for cache in caches:
        rows = len(cache.positions)
        parts.append(struct.pack("<II", 1, rows))
        if rows == 0:
            continue
        cells = np.zeros(rows, _CELL)
        cells["position"], cells["sequences"] = cache.positions, 1
        parts += [cells.tobytes(), struct.pack("<II", int(layout.value_bytes > 0), len(cache.keys))]
        for block in cache.keys:
            parts += [tag, np.ascontiguousarray(block).tobytes()]
        for block in cache.values:
            parts += _build_values(block, layout, tag)
    return b"".join(parts)


def _build_values(block: np.ndarray, layout: Layout, tag: bytes) -> list[bytes]:
    size = layout.value_bytes
    if not size:
        return [tag, np.ascontiguousarray(block).tobytes()]
    elements = layout.row_bytes // size
    across = np.ascontiguousarray(block).reshape(len(block), elements, size).transpose(1, 0, 2)
    return [struct.pack("<iII", layout.type_number, size, elements), np.ascontiguousarray(across).tobytes()]
