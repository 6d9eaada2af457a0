"""The envelope of exported KV rows: who they belong to, their positions, and a checksum, around an engine's bytes.

    magic "WWKV" | u32 version | u32 header length | header JSON | u32 crc32 of header and payload | payload

An engine trusts a payload only after everything here has matched; what the payload means is the engine's own.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.formats.json_file import parse_json
from wattwise_runtimes.spec import ModelSpec

_MAGIC = b"WWKV"
_VERSION = 1
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedRows:
    """positions: int64 [rows]. head_positions: int64 [layers, kv_heads, rows] where heads hold different tokens."""

    positions: np.ndarray
    payload: memoryview
    head_positions: np.ndarray | None = None


def spec_fingerprint(spec: ModelSpec) -> str:
    """Short hash of everything in a spec that shapes the KV cache or its meaning (not names or templates)."""
    values = spec.to_json()
    for key in ("name", "chat_template", "eos_ids", "bos_id", "pad_id", "add_bos"):
        values.pop(key)
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def pack_rows(
    *,
    engine: str,
    spec: ModelSpec,
    kv_type: str,
    positions: np.ndarray,
    payload: bytes,
    head_positions: np.ndarray | None = None,
) -> bytes:
    """Wrap an engine's bytes for the rows at `positions`; head_positions as in `UnpackedRows`."""
    fields = {
        "engine": engine,
        "spec": spec_fingerprint(spec),
        "kv_type": kv_type,
        "positions": np.asarray(positions).tolist(),
        "payload_bytes": len(payload),
    }
    if head_positions is not None:
        fields["head_positions"] = np.asarray(head_positions).tolist()
    header = json.dumps(fields).encode()
    crc = zlib.crc32(payload, zlib.crc32(header))
    return b"".join([_MAGIC, struct.pack("<II", _VERSION, len(header)), header, struct.pack("<I", crc), payload])


def unpack_rows(data: bytes, *, engine: str, spec: ModelSpec, kv_type: str, after: int) -> UnpackedRows:
    """Exported rows that fit this engine, model and KV type; what the payload means is the engine's to check.

    after: the smallest position that may be appended. Raises CorruptArtifact for anything else.
    """
    if len(data) < 12 or data[:4] != _MAGIC:
        raise _refusal("magic", bytes(data[:4]), _MAGIC)
    version, header_bytes = struct.unpack_from("<II", data, 4)
    if version != _VERSION:
        raise _refusal("version", version, _VERSION)
    if header_bytes > min(_MAX_HEADER_BYTES, len(data) - 16):
        raise _refusal("header length", header_bytes, f"at most {len(data) - 16}")
    header = bytes(data[12 : 12 + header_bytes])
    (crc,) = struct.unpack_from("<I", data, 12 + header_bytes)
    payload = memoryview(data)[16 + header_bytes :]
    if zlib.crc32(payload, zlib.crc32(header)) != crc:
        raise _refusal("checksum", hex(zlib.crc32(payload, zlib.crc32(header))), hex(crc))
    fields = parse_json(header, Path("<kv>"), field="header")
    if not isinstance(fields, dict):
        raise _refusal("header", type(fields).__name__, "an object")
    expected = {"engine": engine, "spec": spec_fingerprint(spec), "kv_type": kv_type, "payload_bytes": len(payload)}
    for key, value in expected.items():
        if fields.get(key) != value:
            raise _refusal(key, fields.get(key), value)
    positions = _integers(fields, "positions", dimensions=1)
    _check_order(positions, after)
    head_positions = None
    if "head_positions" in fields:
        shape = (spec.layers, spec.kv_heads, len(positions))
        head_positions = _integers(fields, "head_positions", dimensions=3)
        if head_positions.shape != shape or not len(positions):
            raise _refusal("shape of head_positions", head_positions.shape, shape)
        if not np.array_equal(head_positions[0, 0], positions) or np.any(head_positions[:, :, -1] != positions[-1]):
            raise _refusal("head_positions", "other rows", "the listed positions, and one newest row for all heads")
        _check_order(head_positions, after)
    return UnpackedRows(positions=positions, payload=payload, head_positions=head_positions)


def _integers(fields: dict[str, Any], key: str, *, dimensions: int) -> np.ndarray:
    """A list of integers, or lists of equally many, as int64."""
    try:
        found = np.asarray(fields.get(key))
    except ValueError as error:  # lists of different lengths
        raise _refusal(key, str(error), "lists of the same length") from error
    is_empty = dimensions == 1 and found.shape == (0,)
    if found.ndim != dimensions or not (is_empty or found.dtype == np.int64):
        raise _refusal(key, f"{found.dtype} {found.shape}", f"64-bit integers in {dimensions} dimensions")
    return found.astype(np.int64)


def _check_order(positions: np.ndarray, after: int) -> None:
    if positions.size and (np.any(np.diff(positions) <= 0) or positions.min() < after):
        raise _refusal("positions", positions.reshape(-1)[:4].tolist(), f"increasing, from {after}")


def _refusal(field: str, value: object, limit: object) -> CorruptArtifact:
    return CorruptArtifact("<kv>", field, value, limit)
