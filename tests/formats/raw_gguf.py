"""GGUF bytes put together by hand with `struct`, so that a test can get any part of them wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string, with another length than its own if given."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def scalar(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A field of a given value type."""
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    """A uint32 field."""
    return scalar(key, 4, struct.pack("<I", value))


def array(key: str, kind: int, count: int, items: bytes) -> bytes:
    """An array field that claims `count` items."""
    return scalar(key, 9, struct.pack("<IQ", kind, count) + items)


def tensor(
    name: str | bytes = "t", ne: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, dims: int | None = None
) -> bytes:
    """A directory entry; `ne` in ggml's order."""
    shape = struct.pack(f"<{len(ne)}Q", *ne)
    return text(name) + struct.pack("<I", len(ne) if dims is None else dims) + shape + struct.pack("<IQ", kind, offset)


@dataclass
class Raw:
    """Parts of a file; counts follow from the lists unless they are given."""

    fields: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    field_count: int | None = None
    tensor_count: int | None = None
    alignment: int = 32
    pad: bool = True

    def build(self) -> bytes:
        """The bytes of the file."""
        fields = len(self.fields) if self.field_count is None else self.field_count
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        head = self.magic + struct.pack("<IQQ", self.version, tensors, fields)
        head += b"".join(self.fields) + b"".join(self.tensors)
        if self.pad and self.tensors:
            head += bytes(-len(head) % self.alignment)
        return head + self.data
