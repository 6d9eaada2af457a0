"""The wire format of protocol buffers, walked without building objects: just enough to check an ONNX file.

Every length is checked against the message that contains it. Groups (obsolete) are refused, and so is a known field
with the wrong wire type or, where it must be single, given twice: parsers differ on what those mean.
Spec: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.formats.checked import Data

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Message:
    """One message: a range of the file. Iterate with `fields`; a bytes field is a `Message` to look into."""

    __slots__ = ("data", "end", "path", "start", "what")

    def __init__(self, data: Data, path: Path, what: str, start: int, end: int) -> None:
        self.data, self.path, self.what, self.start, self.end = data, path, what, start, end

    def __len__(self) -> int:
        return self.end - self.start

    def fail(self, field: str, value: object, limit: object) -> CorruptArtifact:
        """The error to raise about a field of this message."""
        return CorruptArtifact(self.path, f"{self.what}: {field}", value, limit)

    def named(self, what: str) -> Message:
        """The same bytes under another name in messages."""
        return Message(self.data, self.path, what, self.start, self.end)

    def bytes(self) -> bytes:
        """The content."""
        return self.data[self.start : self.end]

    def text(self, limit_bytes: int = 1 << 16) -> str:
        """The content as UTF-8 text."""
        if len(self) > limit_bytes:
            raise self.fail("length", len(self), f"at most {limit_bytes} bytes")
        try:
            return self.bytes().decode()
        except UnicodeDecodeError as error:
            raise self.fail("text", error.object, f"UTF-8 (byte {error.start} is not)") from None

    def fields(self, wires: Mapping[int, int], single: Collection[int] = ()) -> Iterator[tuple[int, int | Message]]:
        """(field number, value) of every field: int for numbers (unsigned, as on the wire), Message for bytes.

        wires: wire type of each field that matters; others are stepped over. single: must not come twice. A field
        whose wire type is VARINT may come packed; it is then given as a Message.
        """
        position, seen = self.start, set[int]()
        while position < self.end:
            tag, position = self.varint(position)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise self.fail("field number", number, "1 to 536870911")
            value, position = self._value(number, wire, position)
            wanted = wires.get(number)
            if wanted is None:
                continue
            if wire != wanted and not (wanted == VARINT and wire == BYTES):
                raise self.fail(f"wire type of field {number}", wire, wanted)
            if number in single:
                if number in seen:
                    raise self.fail(f"field {number}", "given twice", "at most once")
                seen.add(number)
            yield number, value

    def _value(self, number: int, wire: int, position: int) -> tuple[int | Message, int]:
        if wire == VARINT:
            return self.varint(position)
        if wire == BYTES:
            length, position = self.varint(position)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise self.fail(f"wire type of field {number}", wire, "0, 1, 2 or 5")
        if length > self.end - position:
            raise self.fail(f"length of field {number}", length, f"the {self.end - position} bytes left in the message")
        what = f"{self.what} field {number}"
        return Message(self.data, self.path, what, position, position + length), position + length

    def varint(self, position: int) -> tuple[int, int]:
        """An unsigned number of up to 64 bits and the position after it."""
        data, end = self.data, min(self.end, position + 10)
        value = shift = 0
        while position < end:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    raise self.fail("variable-length number", hex(value), "64 bits")
                return value, position
            shift += 7
        raise self.fail("variable-length number", "without an end", "at most 10 bytes, inside the message")

    def packed(self) -> Iterator[int]:
        """The numbers of a packed repeated field."""
        position = self.start
        while position < self.end:
            value, position = self.varint(position)
            yield value


def signed(value: int) -> int:
    """An int64 field's value from its unsigned form on the wire."""
    return value - (1 << 64) if value >> 63 else value
