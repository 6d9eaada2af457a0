"""Split GGUF models: name-00001-of-00003.gguf and its neighbours, joined into one view.

Every part is checked on its own by `gguf.parse_gguf`; here only the bookkeeping between parts is. The first part holds
the metadata, each part the split.* keys (llama.cpp's gguf-split).
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.formats.checked import mapped

if TYPE_CHECKING:
    from wattwise_runtimes.formats.gguf import GGUFFile, GGUFTensor

MAX_PARTS = 4096
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def join_parts(first: GGUFFile) -> GGUFFile:
    """The first part with the tensors of all parts added."""
    paths = part_paths(first)
    tensors: dict[str, GGUFTensor] = {}
    for number, path in enumerate(paths):
        part = first if number == 0 else _open_part(path)
        _check_part(part, number, len(paths))
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise CorruptArtifact(path, f"tensor {name!r}", f"in parts {tensors[name].part} and {number}", "once")
            tensors[name] = dataclasses.replace(tensor, part=number)
    total = first.fields.get("split.tensors.count")
    if total is not None and total != len(tensors):
        raise CorruptArtifact(first.path, "'split.tensors.count'", total, f"the {len(tensors)} tensors of all parts")
    return dataclasses.replace(first, tensors=tensors, parts=paths)


def part_paths(first: GGUFFile) -> tuple[Path, ...]:
    """Where the parts must be, from the name of the first; they need not exist."""
    count = first.fields["split.count"]
    if not isinstance(count, int) or not 2 <= count <= MAX_PARTS:
        raise CorruptArtifact(first.path, "'split.count'", count, f"2 to {MAX_PARTS}")
    match = _PART_NAME.fullmatch(first.path.name)
    if match is None or int(match["count"]) != count:
        wanted = f"name-00001-of-{count:05d}.gguf"
        raise CorruptArtifact(first.path, "name of a split file", first.path.name, wanted)
    if int(match["number"]) != 1:
        wanted = f"the first part, {match['stem']}-00001-of-{count:05d}.gguf"
        raise CorruptArtifact(first.path, "name of a split file", first.path.name, wanted)
    folder = first.path.parent
    return (first.path, *(folder / f"{match['stem']}-{i:05d}-of-{count:05d}.gguf" for i in range(2, count + 1)))


def _open_part(path: Path) -> GGUFFile:
    from wattwise_runtimes.formats.gguf import parse_gguf

    with mapped(path) as data:
        return parse_gguf(data, path)


def _check_part(part: GGUFFile, number: int, count: int) -> None:
    for key, expected in (("split.no", number), ("split.count", count)):
        value, kind = part.fields.get(key), part.field_types.get(key)
        if kind != "uint16":  # llama.cpp aborts on any other
            raise CorruptArtifact(part.path, f"type of {key!r}", kind, "uint16")
        if value != expected:
            raise CorruptArtifact(part.path, repr(key), value, expected)
