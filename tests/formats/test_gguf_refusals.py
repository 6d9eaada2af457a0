"""Every way in which a GGUF file can be wrong is refused by name: field, value and limit in the message."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from formats.raw_gguf import Raw, array, scalar, tensor, text, u32
from wattwise_devices.errors import CorruptArtifact, LoadError, UnsupportedArchitecture
from wattwise_runtimes.formats.gguf import parse_gguf, read_gguf

HUGE = (1 << 64) - 1
F32 = bytes(16)  # data of tensor(): 4 floats

REFUSED: dict[str, tuple[Raw | bytes, str, str]] = {  # name: (file, part of the field, part of the message)
    "magic": (Raw(magic=b"GGML"), "magic", "GGML"),
    "version 1": (Raw(version=1), "version", "2 or 3"),
    "version 4": (Raw(version=4), "version", "is 4"),
    "big-endian": (Raw(version=3 << 24), "version", "big-endian"),
    "tensor count": (Raw(tensor_count=HUGE), "tensor count", str(HUGE)),
    "tensor count beyond the file": (Raw([u32("a", 1)], tensor_count=2), "tensor count", "is 2"),
    "field count": (Raw(field_count=1 << 40), "metadata count", "bytes are left"),
    "more fields than claimed to fit": (Raw([u32("a", 1)], field_count=2), "metadata count", "is 2"),
    "empty key": (Raw([u32("", 1)]), "key of metadata 0", "at least one character"),
    "key length": (Raw([text("a" * 20, HUGE)]), "key of metadata 0 length", str(HUGE)),
    "key beyond the file": (Raw([text("a" * 20, 1000)]), "key of metadata 0", "1000 bytes"),
    "key with NUL": (Raw([u32("a\0b", 1)]), "key of metadata 0", "unprintable"),
    "key not UTF-8": (Raw([scalar(b"\xff\xfe", 4, bytes(4))]), "key of metadata 0", "UTF-8"),
    "key twice": (Raw([u32("a", 1), u32("a", 2)]), "key of metadata 1", "not used twice"),
    "value type": (Raw([scalar("a", 13, bytes(8))]), "type of 'a'", "is 13"),
    "value cut": (Raw([scalar("a", 10, bytes(4))]), "'a'", "8 bytes"),
    "bool": (Raw([scalar("a", 7, b"\x02")]), "'a'", "0 or 1"),
    "string length": (Raw([scalar("a", 8, text("abc", 1 << 62))]), "'a' length", str(1 << 62)),
    "string not UTF-8": (Raw([scalar("a", 8, text(b"\xc3("))]), "'a'", "UTF-8 (byte 0"),
    "array count": (Raw([array("a", 4, 1 << 61, bytes(16))]), "number of items in 'a'", str(1 << 61)),
    "array count that wraps": (Raw([array("a", 10, (1 << 61) + 1, bytes(16))]), "number of items", "bytes are left"),
    "string array count": (Raw([array("a", 8, 1 << 30, bytes(16))]), "number of items in 'a'", "at most 2 "),
    "string in array": (Raw([array("a", 8, 1, text("ab", 1 << 63))]), "length of 'a'[0]", "at most 2 bytes"),
    "string in array not UTF-8": (Raw([array("a", 8, 2, text("ab") + text(b"\xff"))]), "'a'[1]", "UTF-8"),
    "array in array": (Raw([array("a", 9, 1, struct.pack("<IQI", 4, 1, 1))]), "item type of 'a'", "no arrays in"),
    "array item type": (Raw([array("a", 99, 1, bytes(8))]), "item type of 'a'", "is 99"),
    "bool array": (Raw([array("a", 7, 3, b"\0\1\5")]), "'a'", "0 or 1"),
    "alignment type": (Raw([scalar("general.alignment", 10, bytes(8))]), "type of 'general.alignment'", "uint32"),
    "alignment 0": (Raw([u32("general.alignment", 0)]), "'general.alignment'", "power of two"),
    "alignment 48": (Raw([u32("general.alignment", 48)]), "'general.alignment'", "is 48"),
    "alignment 2 GiB": (Raw([u32("general.alignment", 1 << 31)]), "'general.alignment'", "1048576"),
    "tensor name empty": (Raw(tensors=[tensor("")], data=F32), "name of tensor 0", "at least one"),
    "tensor name length": (Raw(tensors=[tensor("x" * 64)], data=F32), "name of tensor 0 length", "at most 63"),
    "tensor name with NUL": (Raw(tensors=[tensor("a\0b")], data=F32), "name of tensor 0", "unprintable"),
    "tensor twice": (Raw(tensors=[tensor(), tensor(offset=32)], data=bytes(64)), "name of tensor 1", "not used twice"),
    "no dimensions": (Raw(tensors=[tensor(ne=(4,), dims=0)], data=F32), "dimensions of tensor 't'", "1 to 4"),
    "five dimensions": (Raw(tensors=[tensor(ne=(1,) * 5)], data=F32), "dimensions of tensor 't'", "is 5"),
    "dimension 0": (Raw(tensors=[tensor(ne=(4, 0))], data=F32), "shape of tensor 't'", "at least 1"),
    "shape that overflows": (Raw(tensors=[tensor(ne=(1 << 32, 1 << 32))], data=F32), "size of tensor 't'", "bytes"),
    "shape that wraps to 16 bytes": (
        Raw(tensors=[tensor(ne=(1 << 62, 1 << 2, 4))], data=F32), "size of tensor 't'", str(1 << 68),
    ),
    "type 43": (Raw(tensors=[tensor(kind=43)], data=F32), "type of tensor 't'", "is 43"),
    "row not whole blocks": (Raw(tensors=[tensor(ne=(33,), kind=2)], data=bytes(64)), "row length of tensor 't'", "32"),
    "offset unaligned": (Raw(tensors=[tensor(offset=4)], data=bytes(64)), "offset of tensor 't'", "multiple of"),
    "offset huge": (Raw(tensors=[tensor(offset=HUGE - 31)], data=F32), "end of tensor 't'", "inside the file"),
    "data cut": (Raw(tensors=[tensor()], data=bytes(15)), "end of tensor 't'", "inside the file"),
    "overlap": (
        Raw(tensors=[tensor("a", (9,)), tensor("b", offset=32)], data=bytes(99)), "offset of tensor 'b'", "end of 'a'",
    ),
    "same place": (Raw(tensors=[tensor("a"), tensor("b")], data=bytes(64)), "offset of tensor 'b'", "end of 'a'"),
    "garbage after": (Raw(tensors=[tensor()], data=F32 + b"x" * 100), "bytes after the last tensor", "is 100"),
    "zeros without end": (Raw(tensors=[tensor()], data=bytes((1 << 20) + 20)), "bytes after the last tensor", "zeros"),
    "no data": (Raw(tensors=[tensor()]), "end of tensor 't'", "inside the file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_field_value_and_limit(name: str) -> None:
    file, field, message = REFUSED[name]
    data = file if isinstance(file, bytes) else file.build()
    with pytest.raises(CorruptArtifact) as caught:
        parse_gguf(data, Path("model.gguf"))
    assert field in caught.value.field
    assert message in str(caught.value)
    assert str(caught.value).startswith("model.gguf: ")


@pytest.mark.parametrize("number", [4, 5, 31, 36])
def test_removed_tensor_types_are_named(number: int) -> None:
    with pytest.raises(UnsupportedArchitecture, match=f"type {number} .*removed from GGUF"):
        parse_gguf(Raw(tensors=[tensor(kind=number)], data=F32).build(), Path("x"))


def test_a_good_file_cut_anywhere_is_refused() -> None:
    """Except where nothing but padding is missing."""
    tensors = [tensor("a"), tensor("b", (32, 2), 2, 32)]
    whole = Raw([u32("x", 5), array("y", 8, 2, text("p") + text(""))], tensors, bytes(32 + 36)).build()
    assert set(parse_gguf(whole, Path("x")).tensors) == {"a", "b"}
    for length in range(len(whole)):
        with pytest.raises(CorruptArtifact):
            parse_gguf(whole[:length], Path("x"))


def test_places_that_are_allowed() -> None:
    """Any order, gaps, zero padding after the end, alignment from 8, version 2."""
    tensors = [tensor("late", offset=64), tensor("early")]
    file = parse_gguf(Raw(tensors=tensors, data=bytes(80 + 4096)).build(), Path("x"))
    assert file.tensors["late"].offset == file.data_offset + 64
    small = Raw([u32("general.alignment", 8)], [tensor()], F32, version=2, alignment=8)
    assert parse_gguf(small.build(), Path("x")).alignment == 8


@pytest.mark.parametrize("what", ["missing", "folder", "empty", "short", "pipe"])
def test_things_that_are_no_gguf_file(tmp_path: Path, what: str) -> None:
    path = tmp_path / "model.gguf"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        import os

        os.mkfifo(path)
    elif what != "missing":
        path.write_bytes(b"" if what == "empty" else b"GGUF")
    with pytest.raises(LoadError, match=r"model\.gguf"):
        read_gguf(path)
