"""Protocol buffers taken apart into fields and put together again, so that a graph can be changed without its library.

The onnx package would cost 8 MiB of memory and a quarter of a second in every process that changes a graph. Fields
that nobody touches keep their bytes. For files that our own reader has checked: `formats/protobuf.py` has the checks.
Spec: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wattwise_runtimes.formats.protobuf import BYTES, FIXED32, FIXED64, VARINT

_FIXED_BYTES = {FIXED32: 4, FIXED64: 8}


@dataclass(slots=True)
class Field:
    """One field of a message. value: a number (unsigned, wire type VARINT) or bytes, by wire type."""

    number: int
    wire: int
    value: int | bytes


def split(data: bytes) -> list[Field]:
    """The fields of a message, in order. Raises ValueError or IndexError where the bytes are none."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            fields.append(Field(number, wire, value))
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in _FIXED_BYTES:
            size = _FIXED_BYTES[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"field {number} of {size} bytes at byte {at} of {len(data)}")
        fields.append(Field(number, wire, data[at : at + size]))
        at += size
    return fields


def join(fields: Iterable[Field]) -> bytes:
    """The message of these fields."""
    parts: list[bytes] = []
    for field in fields:
        parts.append(_as_varint(field.number << 3 | field.wire))
        if isinstance(field.value, int):
            parts.append(_as_varint(field.value))
        else:
            if field.wire == BYTES:
                parts.append(_as_varint(len(field.value)))
            parts.append(field.value)
    return b"".join(parts)


def numeric(number: int, value: int) -> Field:
    """A field that holds a number of 0 or more."""
    return Field(number, VARINT, value)


def content(number: int, value: bytes | str | Iterable[Field]) -> Field:
    """A field that holds bytes, text or a message."""
    if isinstance(value, str):
        value = value.encode()
    return Field(number, BYTES, value if isinstance(value, bytes) else join(value))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _as_varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
