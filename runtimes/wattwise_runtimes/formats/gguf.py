"""GGUF files (versions 2 and 3, little-endian), read and checked by our own code before any native code sees them.

At least as strict as ggml's own parser: every count is compared with the bytes left in the file before anything is
allocated, names are unique, tensors lie inside the file on aligned offsets and do not overlap. Strings must be UTF-8,
arrays of arrays are refused (llama.cpp has none), and so is big-endian data. Whether llama.cpp can make a model of a
sound file is another question: see `gguf_llama`.
Spec: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattwise_devices.errors import UnsupportedArchitecture
from wattwise_runtimes.formats.checked import Cursor, Data, mapped, read_array
from wattwise_runtimes.formats.gguf_quants import dequantize
from wattwise_runtimes.formats.gguf_types import (
    ARRAY,
    BOOL,
    REMOVED_TYPES,
    STRING,
    TENSOR_TYPES,
    TYPE_BY_NAME,
    VALUE_TYPES,
)

MAX_FIELDS = 65_536
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 65_535  # the format's own limit
MAX_NAME_BYTES = 63  # GGML_MAX_NAME - 1
MAX_STRING_BYTES = 64 << 20
MAX_ARRAY_ITEMS = 1 << 24
MAX_STRINGS = 1 << 23  # over all arrays: a Python string costs far more memory than its bytes in the file
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32
_LEAST_HEADER = 24
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor's place: shape in numpy order (the reverse of ggml's `ne`), absolute offset in file `part`."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    part: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFFile:
    """A checked GGUF file, or all parts of a split one.

    fields: metadata; scalars as Python values, numeric arrays as numpy arrays, string arrays as list[str].
    field_types: the same keys to "uint32", "string", ... or "array[int32]", ... so that a writer can repeat them.
    data_offset: where tensor data begins (of the first part). parts: every file, the given one first.
    """

    path: Path
    version: int
    alignment: int
    data_offset: int
    fields: Mapping[str, Any]
    field_types: Mapping[str, str]
    tensors: Mapping[str, GGUFTensor]
    parts: tuple[Path, ...] = ()

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop (of the first axis) as float32; nothing else of the tensor is read."""
        tensor = self.tensors[name]
        rows = tensor.shape[0]
        stop = rows if stop is None else stop
        if not 0 <= start <= stop <= rows:
            raise ValueError(f"rows {start}..{stop} of tensor {name!r}, which has {rows}")
        kind = TYPE_BY_NAME[tensor.type]
        row = math.prod(tensor.shape[1:])
        first, last = start * row, stop * row
        begin = first // kind.block * kind.block  # only a 1-D quantised tensor has rows inside a block
        end = -(-last // kind.block) * kind.block
        offset, length = tensor.offset + kind.nbytes(begin), kind.nbytes(end - begin)
        data = read_array(self.parts[tensor.part], offset, length, f"data of tensor {name!r}")
        values = dequantize(data, tensor.type)[first - begin : last - begin]
        return values.reshape(stop - start, *tensor.shape[1:])

    def raw(self, name: str) -> np.ndarray:
        """The tensor's bytes as they lie in the file: uint8, mapped, read-only."""
        tensor = self.tensors[name]
        path = self.parts[tensor.part]
        return np.memmap(path, dtype=np.uint8, mode="r", offset=tensor.offset, shape=(tensor.nbytes,))


def read_gguf(path: str | Path) -> GGUFFile:
    """Open and check a GGUF file; of a split model give the first part, the others are found beside it."""
    path = Path(path)
    with mapped(path, least_bytes=_LEAST_HEADER) as data:
        first = parse_gguf(data, path)
    count = first.fields.get("split.count", 1)
    if isinstance(count, int) and count in (0, 1):
        return first
    from wattwise_runtimes.formats.gguf_split import join_parts

    return join_parts(first)


def parse_gguf(data: Data, path: Path) -> GGUFFile:
    """Check the bytes of one GGUF file. `path` is for messages and for reading tensors later."""
    cursor = Cursor(data, path)
    version = _version(cursor)
    # 29 = name length + 1 byte of name + dims + one dim + type + offset, less one u32; 13 likewise for a field
    tensor_count = cursor.count("tensor count", item_bytes=29, limit=MAX_TENSORS)
    field_count = cursor.count("metadata count", item_bytes=13, limit=MAX_FIELDS)
    fields, types = _fields(cursor, field_count)
    alignment = _alignment(cursor, fields, types)
    tensors, data_offset = _tensors(cursor, tensor_count, alignment)
    _check_layout(cursor, tensors, alignment, data_offset)
    return GGUFFile(
        path=path, version=version, alignment=alignment, data_offset=data_offset, fields=fields, field_types=types,
        tensors={t.name: t for t in tensors}, parts=(path,),
    )  # fmt: skip


def _version(cursor: Cursor) -> int:
    magic = cursor.take(4, "magic")
    if magic != b"GGUF":
        raise cursor.fail("magic", magic, "b'GGUF'")
    version = cursor.u32("version")
    if version and not version & 0xFFFF:
        raise cursor.fail("version", version, "2 or 3, little-endian (this file is big-endian; convert it first)")
    if version not in (2, 3):
        raise cursor.fail("version", version, "2 or 3")
    return version


def _text(cursor: Cursor, field: str, limit: int) -> str:
    length = cursor.u64(field + " length")
    if length > limit:
        raise cursor.fail(field + " length", length, f"at most {limit} bytes")
    data = cursor.take(length, field)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise cursor.fail(field, data, f"UTF-8 (byte {error.start} is not)") from None


def _name(cursor: Cursor, field: str, limit: int) -> str:
    """A key or a tensor name: not empty, no control characters (C code would cut it at a NUL)."""
    name = _text(cursor, field, limit)
    if not name or not name.isprintable():
        raise cursor.fail(field, name, "at least one character, none of them unprintable")
    return name


def _fields(cursor: Cursor, count: int) -> tuple[dict[str, Any], dict[str, str]]:
    fields: dict[str, Any] = {}
    types: dict[str, str] = {}
    strings_left = MAX_STRINGS
    for i in range(count):
        key = _name(cursor, f"key of metadata {i}", MAX_KEY_BYTES)
        if key in fields:
            raise cursor.fail(f"key of metadata {i}", key, "not used twice")
        kind = cursor.u32(f"type of {key!r}")
        if kind == ARRAY:
            fields[key], types[key] = _array(cursor, key, strings_left)
            if types[key] == "array[string]":
                strings_left -= len(fields[key])
        elif kind == STRING:
            fields[key], types[key] = _text(cursor, repr(key), MAX_STRING_BYTES), "string"
        elif kind in VALUE_TYPES:
            name, dtype = VALUE_TYPES[kind]
            fields[key], types[key] = _numbers(cursor, key, kind, dtype, 1)[0].item(), name
        else:
            raise cursor.fail(f"type of {key!r}", kind, "0 to 12")
    return fields, types


def _numbers(cursor: Cursor, key: str, kind: int, dtype: np.dtype, count: int) -> np.ndarray:
    data = cursor.take(count * dtype.itemsize, repr(key))
    if kind == BOOL and data.count(0) + data.count(1) != count:
        raise cursor.fail(repr(key), max(data), "0 or 1 for a bool")
    return np.frombuffer(data, dtype=dtype)


def _array(cursor: Cursor, key: str, strings_left: int) -> tuple[np.ndarray | list[str], str]:
    kind = cursor.u32(f"item type of {key!r}")
    field = f"number of items in {key!r}"
    if kind == STRING:
        count = cursor.count(field, item_bytes=8, limit=min(MAX_ARRAY_ITEMS, strings_left))
        return _strings(cursor, key, count), "array[string]"
    if kind in VALUE_TYPES:
        name, dtype = VALUE_TYPES[kind]
        count = cursor.count(field, item_bytes=dtype.itemsize, limit=MAX_ARRAY_ITEMS)
        return _numbers(cursor, key, kind, dtype, count), f"array[{name}]"
    raise cursor.fail(f"item type of {key!r}", kind, "0 to 12 but 9 (no arrays in arrays)")


def _strings(cursor: Cursor, key: str, count: int) -> list[str]:
    """The hot loop of opening a model: a vocabulary has a few hundred thousand strings."""
    data, position, end, length_of = cursor.data, cursor.position, cursor.end, _U64.unpack_from
    items: list[str] = []
    append = items.append
    try:
        for _ in range(count):
            if end - position < 8:
                raise cursor.fail(f"{key!r}[{len(items)}]", f"{count} strings", "as many as are left in the file")
            start = position + 8
            position = start + length_of(data, position)[0]
            if position > end or position - start > MAX_STRING_BYTES:
                limit = min(MAX_STRING_BYTES, end - start)
                raise cursor.fail(f"length of {key!r}[{len(items)}]", position - start, f"at most {limit} bytes")
            append(data[start:position].decode())
    except UnicodeDecodeError as error:
        raise cursor.fail(f"{key!r}[{len(items)}]", error.object, f"UTF-8 (byte {error.start} is not)") from None
    cursor.position = position
    return items


def _alignment(cursor: Cursor, fields: dict[str, Any], types: dict[str, str]) -> int:
    if "general.alignment" not in fields:
        return DEFAULT_ALIGNMENT
    if types["general.alignment"] != "uint32":
        raise cursor.fail("type of 'general.alignment'", types["general.alignment"], "uint32")
    value = fields["general.alignment"]
    if not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.fail("'general.alignment'", value, f"a power of two from 8 to {MAX_ALIGNMENT}")
    return value


def _tensors(cursor: Cursor, count: int, alignment: int) -> tuple[list[GGUFTensor], int]:
    """The tensor directory with absolute offsets, and where the data begins."""
    found: list[tuple[str, tuple[int, ...], str, int, int]] = []
    names: set[str] = set()
    for i in range(count):
        name = _name(cursor, f"name of tensor {i}", MAX_NAME_BYTES)
        if name in names:
            raise cursor.fail(f"name of tensor {i}", name, "not used twice")
        names.add(name)
        shape, kind, nbytes = _shape_and_type(cursor, name)
        offset = cursor.u64(f"offset of tensor {name!r}")
        if offset % alignment:
            raise cursor.fail(f"offset of tensor {name!r}", offset, f"a multiple of the alignment {alignment}")
        found.append((name, shape, kind, offset, nbytes))
    if not found:
        return [], cursor.position
    base = -(-cursor.position // alignment) * alignment
    return [GGUFTensor(name, shape, kind, base + offset, size) for name, shape, kind, offset, size in found], base


def _shape_and_type(cursor: Cursor, name: str) -> tuple[tuple[int, ...], str, int]:
    dims = cursor.u32(f"dimensions of tensor {name!r}")
    if not 1 <= dims <= MAX_DIMS:
        raise cursor.fail(f"dimensions of tensor {name!r}", dims, f"1 to {MAX_DIMS}")
    ne = tuple(cursor.u64(f"dimension {d} of tensor {name!r}") for d in range(dims))
    number = cursor.u32(f"type of tensor {name!r}")
    if number in REMOVED_TYPES:
        raise UnsupportedArchitecture(
            f"{cursor.path}: tensor {name!r} has type {number} ({REMOVED_TYPES[number]}), which was removed from "
            "GGUF. Convert the model again from its source."
        )
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        raise cursor.fail(f"type of tensor {name!r}", number, f"a known tensor type (0 to {max(TENSOR_TYPES)})")
    if 0 in ne:
        raise cursor.fail(f"shape of tensor {name!r}", ne, "dimensions of at least 1")
    if ne[0] % kind.block:
        raise cursor.fail(f"row length of tensor {name!r}", ne[0], f"a multiple of {kind.block} for {kind.name}")
    nbytes = kind.nbytes(math.prod(ne))
    if nbytes > len(cursor.data):
        raise cursor.fail(f"size of tensor {name!r}", f"{ne} = {nbytes} bytes", f"the file's {len(cursor.data)} bytes")
    return ne[::-1], kind.name, nbytes


def _check_layout(cursor: Cursor, tensors: list[GGUFTensor], alignment: int, data_offset: int) -> None:
    """Tensors inside the file, none over another, nothing but zero padding after the last."""
    end, before = data_offset, ""
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset < end:
            raise cursor.fail(f"offset of tensor {tensor.name!r}", tensor.offset, f"{end} or more (end of {before!r})")
        end, before = tensor.offset + tensor.nbytes, tensor.name
        if end > len(cursor.data):
            raise cursor.fail(f"end of tensor {tensor.name!r}", end, f"inside the file of {len(cursor.data)} bytes")
    extra = len(cursor.data) - end
    if extra > MAX_ALIGNMENT or (extra >= alignment and cursor.data[end:].strip(b"\0")):
        raise cursor.fail("bytes after the last tensor", extra, f"less than the alignment {alignment}, or zeros")
