"""Which tokens a session's saved rows are of and which files hold them: one small file per session, read as a whole.

    magic "WWSX" | u32 version | u32 header bytes | header JSON | ids i32 | tokens i32, where there are holes | SHA-256

The digest is of everything before it. Sizes are compared with the file's before anything is made of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattwise.kv.held_state import HeldState, SeenAttention
from wattwise.sessions.blobs import Blob, Blobs
from wattwise.sessions.fingerprint import Fingerprint
from wattwise_devices.errors import CorruptArtifact, LoadError
from wattwise_runtimes.formats.atomic import write_file_atomically
from wattwise_runtimes.formats.checked import regular_file_size
from wattwise_runtimes.formats.json_file import parse_json
from wattwise_runtimes.spec import ModelSpec

_MAGIC, _VERSION = b"WWSX", 1
_PREFIX = struct.Struct("<4sII")
_DIGEST_BYTES = 32
_MOST_BYTES = 64 << 20  # eight million tokens
_MOST_VALUES = 1 << 17  # brackets and commas of the header


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Rows number `start` to `stop` - 1, as the engine exported them, in one file."""

    blob: Blob
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsIndex:
    """state: of the held text, without attention, whose file `attention` names. segments: all rows, in order.

    queries: of the attention, how many are kept one by one.
    """

    fingerprint: Fingerprint
    state: HeldState
    segments: tuple[Segment, ...]
    attention: Blob | None = None
    queries: int = 0

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Every file that this session needs."""
        rows = tuple(segment.blob for segment in self.segments)
        return rows if self.attention is None else (*rows, self.attention)


def attention_bytes(seen: SeenAttention) -> bytes:
    """The content of an attention file: the three arrays one after another, float32, little-endian."""
    return b"".join(part.astype("<f4").tobytes() for part in seen.parts)


def read_attention(blobs: Blobs, index: RowsIndex, spec: ModelSpec, most_queries: int) -> SeenAttention | None:
    """The arrays again, None where the index names none. Raises CorruptArtifact where the file does not hold as many as
    this model and the index need, which is found out before it is read; LoadError where it is gone."""
    if index.attention is None:
        return None
    if index.queries > most_queries:
        raise CorruptArtifact("<attention>", "queries", index.queries, f"at most {most_queries}")
    layers, heads, rows = spec.layers, spec.heads, index.state.rows
    shapes = [(layers, heads, rows), (layers, spec.kv_heads, rows), (layers, heads, index.queries, rows)]
    sizes = [4 * math.prod(shape) for shape in shapes]
    if index.attention.nbytes != sum(sizes):
        raise CorruptArtifact("<attention>", "bytes", index.attention.nbytes, sum(sizes))
    data = blobs.get(index.attention)
    parts: list[np.ndarray] = []
    start = 0
    for shape, size in zip(shapes, sizes, strict=True):
        parts.append(np.frombuffer(data, "<f4", size // 4, start).reshape(shape))
        start += size
    return SeenAttention(total=parts[0], chances=parts[1], recent=parts[2])


def write_index(path: Path, index: RowsIndex) -> None:
    """Replace the file. OSError from the disk."""
    write_file_atomically(path, index_bytes(index))


def index_bytes(index: RowsIndex) -> bytes:
    """The file's content."""
    state = index.state
    header = {
        "fingerprint": {name: getattr(index.fingerprint, name) for name in Fingerprint.__dataclass_fields__},
        "ids": len(state.ids),
        "tokens": len(state.tokens) if state.tokens is not None else None,
        "rows": state.rows,
        "evicted": state.evicted,
        "segments": [[s.blob.name, s.blob.nbytes, s.stop] for s in index.segments],
        "attention": [index.attention.name, index.attention.nbytes, index.queries] if index.attention else None,
    }
    text = json.dumps(header).encode()
    body = _PREFIX.pack(_MAGIC, _VERSION, len(text)) + text + state.ids.astype("<i4").tobytes()
    if state.tokens is not None:
        body += state.tokens.astype("<i4").tobytes()
    return body + hashlib.sha256(body).digest()


def read_index(path: Path) -> RowsIndex:
    """A checked index. Raises CorruptArtifact for a damaged or foreign file, LoadError where none can be read."""
    size = regular_file_size(path)
    if not _PREFIX.size + _DIGEST_BYTES <= size <= _MOST_BYTES:
        raise CorruptArtifact(path, "file size in bytes", size, f"{_PREFIX.size + _DIGEST_BYTES} to {_MOST_BYTES}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise CorruptArtifact(path, "file size in bytes", len(data), size)
    return parse_index(data, path)


def parse_index(data: bytes, path: Path) -> RowsIndex:
    """From the file's content; errors as `read_index`."""
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(body) < _PREFIX.size or body[:4] != _MAGIC:
        raise CorruptArtifact(path, "magic", body[:4], _MAGIC)
    _, version, header_bytes = _PREFIX.unpack_from(body)
    if version != _VERSION:
        raise CorruptArtifact(path, "version", version, _VERSION)
    if hashlib.sha256(body).digest() != digest:
        raise CorruptArtifact(path, "sha256", digest.hex(), hashlib.sha256(body).hexdigest())
    left = len(body) - _PREFIX.size
    if header_bytes > left:
        raise CorruptArtifact(path, "header bytes", header_bytes, f"at most {left}")
    after = _PREFIX.size + header_bytes
    header = parse_json(body[_PREFIX.size : after], path, field="header", max_depth=4, max_values=_MOST_VALUES)
    return _Header(header, path).index(body[after:])


class _Header:
    """The header's fields, each checked when it is asked for."""

    def __init__(self, fields: Any, path: Path) -> None:
        if not isinstance(fields, dict):
            raise CorruptArtifact(path, "header", type(fields).__name__, "an object")
        self._fields, self._path = fields, path

    def index(self, arrays: bytes) -> RowsIndex:
        """The index, with `arrays` as what follows the header."""
        ids, rows = self._count("ids"), self._count("rows")
        has_holes = self._fields.get("tokens") is not None
        tokens = self._count("tokens") if has_holes else 0
        if len(arrays) != 4 * (ids + tokens):
            raise CorruptArtifact(self._path, "bytes of ids and tokens", len(arrays), 4 * (ids + tokens))
        numbers = np.frombuffer(arrays, "<i4")
        state = HeldState(
            ids=numbers[:ids].astype(np.int32),
            rows=rows,
            tokens=numbers[ids:].astype(np.int64) if has_holes else None,
            evicted=self._count("evicted"),
        )
        attention, queries = None, 0
        if self._fields.get("attention") is not None:
            name, nbytes, queries = self._list("attention", self._fields["attention"])
            attention = self._blob(name, nbytes)
        return RowsIndex(
            fingerprint=Fingerprint.from_json(self._fields.get("fingerprint"), self._path),
            state=state,
            segments=self._segments(rows),
            attention=attention,
            queries=queries,
        )

    def _segments(self, rows: int) -> tuple[Segment, ...]:
        listed = self._fields.get("segments")
        if not isinstance(listed, list):
            raise CorruptArtifact(self._path, "segments", listed, "a list")
        found: list[Segment] = []
        start = 0
        for entry in listed:
            name, nbytes, stop = self._list("segment", entry)
            if not start < stop <= rows:
                raise CorruptArtifact(self._path, "end of a segment", stop, f"{start + 1} to {rows}")
            found.append(Segment(blob=self._blob(name, nbytes), start=start, stop=stop))
            start = stop
        if start != rows:
            raise CorruptArtifact(self._path, "rows in segments", start, rows)
        return tuple(found)

    def _count(self, name: str) -> int:
        value = self._fields.get(name)
        if type(value) is not int or value < 0:
            raise CorruptArtifact(self._path, name, value, "a count")
        return value

    def _list(self, name: str, value: Any) -> Sequence[Any]:
        """A text and two counts."""
        if not isinstance(value, list) or [type(part) for part in value] != [str, int, int] or min(value[1:]) < 0:
            raise CorruptArtifact(self._path, name, value, "a name and two counts")
        return value

    def _blob(self, name: str, nbytes: int) -> Blob:
        try:
            return Blob(name=name, nbytes=nbytes)
        except CorruptArtifact as error:
            raise CorruptArtifact(self._path, error.field, error.value, error.limit) from error
