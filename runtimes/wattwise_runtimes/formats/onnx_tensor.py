"""One tensor of an ONNX file: shape and type against its bytes, inline or in an external file.

External data must lie in a plain file inside the model's folder (symlinks resolved), within that file's length.
onnxruntime's marker for addresses in memory is refused: in a file it would make it read from anywhere.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.formats.checked import regular_file_size
from wattwise_runtimes.formats.protobuf import BYTES, VARINT, Message, signed

MAX_DIMS = 32
MAX_NAME_BYTES = 4096
MAX_UNPACKED = 1 << 20  # each costs far more memory than its bytes in the file
DTYPES: dict[int, tuple[str, int]] = {  # TensorProto.DataType -> (name, bits per element; 0: text)
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
    7: ("int64", 64), 8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64), 12: ("uint32", 32),
    13: ("uint64", 64), 14: ("complex64", 64), 15: ("complex128", 128), 16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8), 18: ("float8e4m3fnuz", 8), 19: ("float8e5m2", 8), 20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4), 22: ("int4", 4), 23: ("float4e2m1", 4), 24: ("float8e8m0", 8), 25: ("uint2", 2),
    26: ("int2", 2),
}  # fmt: skip
_STORES = {4: "float_data", 5: "int32_data", 6: "string_data", 7: "int64_data", 9: "raw_data", 10: "double_data",
           11: "uint64_data"}  # fmt: skip
_STORE_OF: dict[str, int] = {  # where a type's elements stand if not in raw_data; all others in int32_data
    "float32": 4, "complex64": 4, "string": 6, "int64": 7, "float64": 10, "complex128": 10, "uint32": 11, "uint64": 11,
}  # fmt: skip
_NUMBER = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxTensor:
    """location: None for inline data, else the external file, in which `length` bytes from `offset` are the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    location: Path | None = None
    offset: int = 0
    length: int = 0


class ExternalFiles:
    """The files beside a model that may hold its weights: resolved and measured once each."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._sizes: dict[str, tuple[Path, int]] = {}

    def opened(self) -> tuple[Path, ...]:
        """Every file that was referred to."""
        return tuple(path for path, _ in self._sizes.values())

    def find(self, location: str) -> tuple[Path, int]:
        """Path and size of an external file; CorruptArtifact unless it is a plain file inside the model's folder."""
        if location not in self._sizes:
            self._sizes[location] = self._measure(location)
        return self._sizes[location]

    def _measure(self, location: str) -> tuple[Path, int]:
        inside = "a file inside the model's folder, as a relative path with '/'"
        parts = PurePosixPath(location).parts
        bad = set(location) & set('\\:*?"<>|') or not location.isprintable() or location.startswith(("/", "~"))
        if bad or not parts or ".." in parts:
            raise CorruptArtifact(self._model, "external_data location", location, inside)
        folder = self._model.parent
        path = folder.joinpath(*parts)
        try:
            resolved = path.resolve()
            outside = not resolved.is_relative_to(folder.resolve())
        except (OSError, RuntimeError) as error:  # a circle of symlinks
            raise CorruptArtifact(self._model, "external_data location", location, f"{inside} ({error})") from error
        if outside:
            raise CorruptArtifact(self._model, "external_data location", f"{location} -> {resolved}", inside)
        return path, regular_file_size(path)


def parse_tensor(message: Message, files: ExternalFiles) -> OnnxTensor:
    """Check one TensorProto."""
    dims: list[int] = []
    number = location_kind = 0
    name = ""
    stores: dict[int, list[Message | int]] = {}
    external: dict[str, str] = {}
    wires = {1: VARINT, 2: VARINT, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: VARINT, 8: BYTES, 9: BYTES, 10: BYTES,
             11: VARINT, 13: BYTES, 14: VARINT}  # fmt: skip
    for tag, value in message.fields(wires, single=(2, 3, 8, 9, 14)):
        if tag == 1:
            _add_dims(message, dims, value)
        elif tag in _STORES:
            parts = stores.setdefault(tag, [])
            if len(parts) == MAX_UNPACKED:
                raise message.fail(f"pieces of {_STORES[tag]}", len(parts) + 1, f"at most {MAX_UNPACKED}; pack them")
            parts.append(value)
        elif isinstance(value, int):
            number, location_kind = (value, location_kind) if tag == 2 else (number, value)
        elif tag == 8:
            name = value.named("tensor name").text(MAX_NAME_BYTES)
        elif tag == 13:
            _add_external(value, external)
        else:
            raise message.fail("segment", "present", "whole tensors only")
    what = message.named(f"{message.what} {name!r}")
    if number not in DTYPES:
        raise what.fail("data_type", number, f"one of {', '.join(map(str, DTYPES))}")
    if location_kind not in (0, 1):
        raise what.fail("data_location", location_kind, "0 (inline) or 1 (external)")
    dtype, bits = DTYPES[number]
    nbytes = -(-math.prod(dims) * bits // 8)
    shape = tuple(dims)
    if location_kind == 1 or external:
        return _external(what, name, dtype, shape, nbytes, external, stores, location_kind, files)
    _check_inline(what, dtype, math.prod(dims), nbytes, stores)
    return OnnxTensor(name=name, dtype=dtype, shape=shape, nbytes=nbytes)


def _add_dims(message: Message, dims: list[int], value: int | Message) -> None:
    for dim in [value] if isinstance(value, int) else value.packed():
        size = signed(dim)
        if size < 0 or len(dims) == MAX_DIMS:
            limit = "0 or more" if size < 0 else f"at most {MAX_DIMS} of them"
            raise message.fail(f"dimension {len(dims)}", size, limit)
        dims.append(size)


def _add_external(message: Message, external: dict[str, str]) -> None:
    key = text = ""
    for tag, value in message.fields({1: BYTES, 2: BYTES}, single=(1, 2)):
        if isinstance(value, Message):
            content = value.named("external_data").text(MAX_NAME_BYTES)
            key, text = (content, text) if tag == 1 else (key, content)
    if key in external:
        raise message.fail("external_data key", key, "not used twice")
    external[key] = text


def _external(
    what: Message, name: str, dtype: str, shape: tuple[int, ...], nbytes: int, external: dict[str, str],
    stores: dict[int, list[Message | int]], location_kind: int, files: ExternalFiles,
) -> OnnxTensor:  # fmt: skip
    if location_kind != 1 or stores or dtype == "string":
        raise what.fail("external data", "together with inline data or text", "one way of storing only")
    unknown = set(external) - {"location", "offset", "length", "checksum"}
    if unknown:
        raise what.fail("external_data keys", sorted(unknown), "location, offset, length, checksum")
    numbers: dict[str, int] = {}
    for key, default in (("offset", 0), ("length", nbytes)):
        text = external.get(key)
        if text is not None and not _NUMBER.fullmatch(text):
            raise what.fail(f"external_data {key}", text, "a whole number")
        numbers[key] = default if text is None else int(text)
    path, size = files.find(external.get("location", ""))
    if numbers["length"] != nbytes:
        raise what.fail("external_data length", numbers["length"], f"{nbytes} bytes for {shape} of {dtype}")
    if numbers["offset"] + nbytes > size:
        raise what.fail("end of external data", numbers["offset"] + nbytes, f"at most the {size} bytes of {path.name}")
    return OnnxTensor(
        name=name, dtype=dtype, shape=shape, nbytes=nbytes, location=path, offset=numbers["offset"], length=nbytes
    )


def _check_inline(
    what: Message, dtype: str, elements: int, nbytes: int, stores: dict[int, list[Message | int]]
) -> None:
    if not stores:
        if elements:
            raise what.fail("data", "missing", f"{nbytes} bytes")
        return
    if len(stores) > 1:
        raise what.fail("data", [_STORES[tag] for tag in stores], "one way of storing only")
    tag, values = next(iter(stores.items()))
    if tag == 9 and dtype != "string":
        found = sum(len(value) for value in values if isinstance(value, Message))
        if found != nbytes:
            raise what.fail("raw_data length", found, f"{nbytes} bytes for {elements} elements of {dtype}")
        return
    if tag != _STORE_OF.get(dtype, 5):
        raise what.fail("data", _STORES[tag], f"raw_data or {_STORES[_STORE_OF.get(dtype, 5)]} for {dtype}")
    bits = dict(DTYPES.values())[dtype]
    items = -(-elements * bits // 8) if 0 < bits < 8 else elements * (2 if dtype.startswith("complex") else 1)
    found = _count_items(what, tag, values)
    if found != items:
        raise what.fail(f"items in {_STORES[tag]}", found, f"{items} for {elements} elements of {dtype}")


def _count_items(what: Message, tag: int, values: list[Message | int]) -> int:
    """Elements in one of the typed stores: packed floats, doubles or varints, or strings one by one."""
    if tag == 6:
        return len(values)
    found = 0
    for value in values:
        if isinstance(value, int):
            found += 1
        elif tag in (4, 10):
            size = 4 if tag == 4 else 8
            if len(value) % size:
                raise what.fail(f"length of {_STORES[tag]}", len(value), f"a multiple of {size}")
            found += len(value) // size
        else:  # a varint ends with the byte whose highest bit is clear
            ends = np.frombuffer(value.bytes(), dtype=np.uint8) < 0x80
            if len(ends) and not ends[-1]:
                raise what.fail(f"last number of {_STORES[tag]}", "without an end", "inside the field")
            found += int(ends.sum())
    return found
