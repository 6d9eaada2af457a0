"""Safetensors files and folders of them, read by our own code, a few rows at a time.

A file is a length, a JSON header and the tensors' bytes without gaps. Checked before anything is read: the header's
size and strictness, names, types, shapes against byte ranges, no overlap, no hole, the file's exact length. Pickled
checkpoints (.bin, .pt, ...) are refused: opening one runs code that the file brings along.
Spec: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattwise_devices.errors import CorruptArtifact, LoadError, UnsupportedArchitecture
from wattwise_runtimes.formats.checked import Cursor, Data, mapped, read_array
from wattwise_runtimes.formats.float8 import decode_e4m3, decode_e5m2
from wattwise_runtimes.formats.json_file import parse_json, read_json_object

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_TENSORS = 1 << 18
MAX_DIMS = 8
MAX_SHARDS = 4096
INDEX_NAME = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_MAX_INDEX_BYTES = 64 << 20

DTYPES: dict[str, tuple[str, int]] = {  # name in the file -> (our name, bytes per element)
    "F64": ("f64", 8), "F32": ("f32", 4), "F16": ("f16", 2), "BF16": ("bf16", 2), "F8_E4M3": ("f8_e4m3", 1),
    "F8_E5M2": ("f8_e5m2", 1), "I64": ("i64", 8), "I32": ("i32", 4), "I16": ("i16", 2), "I8": ("i8", 1),
    "U64": ("u64", 8), "U32": ("u32", 4), "U16": ("u16", 2), "U8": ("u8", 1), "BOOL": ("bool", 1),
}  # fmt: skip
_NUMPY = {
    "f64": "<f8", "f32": "<f4", "f16": "<f2", "i64": "<i8", "i32": "<i4", "i16": "<i2", "i8": "<i1", "u64": "<u8",
    "u32": "<u4", "u16": "<u2", "u8": "<u1", "bool": "?", "bf16": "<u2", "f8_e4m3": "<u1", "f8_e5m2": "<u1",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's place: `start` is absolute in `path`. dtype: "f32", "bf16", "i64", ..."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsFile:
    """One file, or all shards of a folder. metadata: the header's `__metadata__` (of the first shard)."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    files: tuple[Path, ...]

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop of the first axis as a new float32 array; nothing else of the tensor is read."""
        info = self.tensors[name]
        return to_float32(self.read_stored(name, start, stop), info.dtype)

    def read_stored(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The same rows as they are stored: bf16 as uint16, 8-bit floats as uint8."""
        info = self.tensors[name]
        shape = info.shape or (1,)  # a scalar has one row
        stop = shape[0] if stop is None else stop
        if not 0 <= start <= stop <= shape[0]:
            raise ValueError(f"rows {start}..{stop} of tensor {name!r}, which has {shape[0]}")
        row_bytes = info.nbytes // shape[0] if shape[0] else 0
        data = read_array(
            info.path, info.start + start * row_bytes, (stop - start) * row_bytes, f"data of tensor {name!r}"
        )
        rows = data.view(_NUMPY[info.dtype])
        return rows.reshape(stop - start, *shape[1:]) if info.shape else rows.reshape(())


def to_float32(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Stored values as a float32 array of the same shape; f32 is given on as it is."""
    if dtype == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype == "f8_e4m3":
        return decode_e4m3(stored)
    if dtype == "f8_e5m2":
        return decode_e5m2(stored)
    with np.errstate(over="ignore", invalid="ignore"):  # f64 beyond float32 becomes infinity
        return stored.astype(np.float32, copy=False)


def open_safetensors(path: str | Path) -> SafetensorsFile:
    """Open and check one safetensors file."""
    path = Path(path)
    refuse_pickle(path)
    with mapped(path, least_bytes=10) as data:
        return parse_safetensors(data, path)


def refuse_pickle(path: Path) -> None:
    """LoadError for a file name of a format that can run code when it is opened."""
    if path.suffix.lower() in PICKLES:
        raise UnsupportedArchitecture(
            f"{path} is a pickled checkpoint ({path.suffix}). Opening one can run any code that the file contains, so "
            "wattwise never does. Use the model's .safetensors files, or convert it with its own project's tools."
        )


def parse_safetensors(data: Data, path: Path) -> SafetensorsFile:
    """Check the bytes of one file. `path` is for messages and for reading tensors later."""
    cursor = Cursor(data, path)
    length = cursor.u64("header length")
    if length > min(MAX_HEADER_BYTES, cursor.left):
        limit = f"at most {min(MAX_HEADER_BYTES, cursor.left)} bytes ({cursor.left} follow in the file)"
        raise cursor.fail("header length", length, limit)
    header = cursor.take(length, "header")
    if not header.startswith(b"{"):
        raise cursor.fail("first byte of the header", header[:1], "'{'")
    entries = parse_json(header, path, field="header", max_depth=8, max_values=MAX_TENSORS * 16)
    metadata = _metadata(cursor, entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        raise cursor.fail("number of tensors", len(entries), f"at most {MAX_TENSORS}")
    base = cursor.position
    tensors = {name: _tensor(cursor, name, entry, base) for name, entry in entries.items()}
    _check_layout(cursor, tensors, base)
    return SafetensorsFile(path=path, tensors=tensors, metadata=metadata, files=(path,))


def _metadata(cursor: Cursor, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise cursor.fail("'__metadata__'", value, "an object of strings")
    return value


def _whole_numbers(value: Any, *, least: int, most: int) -> bool:
    return (
        isinstance(value, list)
        and least <= len(value) <= most
        and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
    )


def _tensor(cursor: Cursor, name: str, entry: Any, base: int) -> TensorInfo:
    if not name or not name.isprintable():
        raise cursor.fail("name of a tensor", name, "at least one character, none of them unprintable")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise cursor.fail(f"entry of tensor {name!r}", entry, "dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise cursor.fail(f"dtype of tensor {name!r}", dtype, f"one of {', '.join(DTYPES)}")
    if not _whole_numbers(shape, least=0, most=MAX_DIMS):
        raise cursor.fail(f"shape of tensor {name!r}", shape, f"up to {MAX_DIMS} whole numbers")
    if not _whole_numbers(offsets, least=2, most=2) or offsets[0] > offsets[1]:
        raise cursor.fail(f"data_offsets of tensor {name!r}", offsets, "[begin, end] with begin <= end")
    kind, size = DTYPES[dtype]
    nbytes = math.prod(shape) * size
    begin, end = offsets
    if end > len(cursor.data) - base:
        raise cursor.fail(
            f"end of tensor {name!r}", end, f"at most the {len(cursor.data) - base} bytes after the header"
        )
    if end - begin != nbytes:
        raise cursor.fail(
            f"size of tensor {name!r}", f"{end - begin} bytes", f"{nbytes} bytes for shape {shape} of {dtype}"
        )
    return TensorInfo(kind, tuple(shape), base + begin, nbytes, cursor.path)


def _check_layout(cursor: Cursor, tensors: dict[str, TensorInfo], base: int) -> None:
    """Tensors one after the other without overlap or hole, to the very end of the file."""
    end, before = base, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if info.start != end:
            raise cursor.fail(f"begin of tensor {name!r}", info.start - base, f"{end - base} (end of {before})")
        end, before = info.start + info.nbytes, f"tensor {name!r}"
    if end != len(cursor.data):
        raise cursor.fail("file size in bytes", len(cursor.data), f"{end} (end of {before})")


def open_folder(folder: str | Path) -> SafetensorsFile:
    """All tensors of a checkpoint folder: model.safetensors, or the shards that its index names."""
    folder = Path(folder)
    index, single = folder / INDEX_NAME, folder / "model.safetensors"
    if index.exists():
        return _open_shards(folder, index)
    if single.exists():
        return open_safetensors(single)
    _explain_missing(folder)
    raise LoadError(f"{folder} holds neither model.safetensors nor {INDEX_NAME}. Check the path.")


def _explain_missing(folder: Path) -> None:
    """Say why a folder with weights of another kind is refused."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            refuse_pickle(path)


def shard_names(index: Path) -> dict[str, list[str]]:
    """Shard file name -> names of its tensors, from an index file. Names cannot leave the folder."""
    weight_map = read_json_object(index, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptArtifact(index, "'weight_map'", weight_map, "an object of tensor names and file names")
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise CorruptArtifact(index, f"file of tensor {name!r}", shard, "a plain file name in the same folder")
        refuse_pickle(index.parent / shard)
        shards.setdefault(shard, []).append(name)
    if len(shards) > MAX_SHARDS:
        raise CorruptArtifact(index, "number of files", len(shards), f"at most {MAX_SHARDS}")
    return shards


def _is_plain_name(name: str) -> bool:
    return bool(name) and name.isprintable() and not set(name) & set('/\\:*?"<>|') and name not in (".", "..")


def _open_shards(folder: Path, index: Path) -> SafetensorsFile:
    tensors: dict[str, TensorInfo] = {}
    metadata: Mapping[str, str] = {}
    paths: list[Path] = []
    for shard, wanted in shard_names(index).items():
        file = open_safetensors(folder / shard)
        metadata = metadata or file.metadata
        paths.append(file.path)
        for name in _same_names(index, shard, wanted, file):
            if name in tensors:
                raise CorruptArtifact(index, f"tensor {name!r}", f"also in {tensors[name].path.name}", "in one file")
            tensors[name] = file.tensors[name]
    return SafetensorsFile(path=folder, tensors=tensors, metadata=metadata, files=(index, *paths))


def _same_names(index: Path, shard: str, wanted: list[str], file: SafetensorsFile) -> Iterator[str]:
    """The tensors of one shard, which must be exactly those that the index lists for it."""
    for name in wanted:
        if name not in file.tensors:
            raise CorruptArtifact(index, f"file of tensor {name!r}", shard, "a file that holds it")
        yield name
    extra = sorted(set(file.tensors) - set(wanted))
    if extra:
        raise CorruptArtifact(file.path, "tensors that the index does not list", extra[:5], "none")
