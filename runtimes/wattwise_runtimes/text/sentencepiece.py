"""SentencePiece `tokenizer.model` files: a small reader of the few protobuf fields that matter.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. Only BPE models are
run here; unigram models and non-trivial text normalisation are refused by name. Not here: encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.formats.checked import read_range, regular_file_size
from wattwise_runtimes.text.vocabulary import SPACE, USER_DEFINED, Vocabulary

MAX_BYTES = 64 << 20
MAX_PIECES = 1 << 21
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}


def read_sentencepiece(path: Path) -> Vocabulary:
    """The vocabulary of a SentencePiece model file."""
    size = regular_file_size(path)
    if size > MAX_BYTES:
        raise CorruptArtifact(path, "file size in bytes", size, f"at most {MAX_BYTES}")
    data = bytes(read_range(path, 0, size, "SentencePiece model"))
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data, path):
        if number == _PIECES:
            pieces.append(_piece(_message(value, number, path), len(pieces), path))
            if len(pieces) > MAX_PIECES:
                raise CorruptArtifact(path, "number of pieces", len(pieces), f"at most {MAX_PIECES}")
        elif number == _TRAINER:
            trainer.update(_fields(_message(value, number, path), path))
        elif number == _NORMALIZER:
            normalizer.update(_fields(_message(value, number, path), path))
    if not pieces:
        raise CorruptArtifact(path, "number of pieces", 0, "at least 1")
    _refuse_unsupported(trainer, normalizer, path)
    return _vocabulary(pieces, trainer, normalizer, path)


def _vocabulary(
    pieces: list[tuple[str, float, int]], trainer: dict[int, Any], normalizer: dict[int, Any], path: Path
) -> Vocabulary:
    def special(field: int, default: int) -> int | None:
        value = _signed(trainer.get(field, default))
        if value >= len(pieces):
            raise CorruptArtifact(path, f"trainer_spec field {field} (a special id)", value, f"below {len(pieces)}")
        return value if value >= 0 else None

    # User-defined pieces are looked for in the text as typed, with real spaces.
    tokens = tuple(text.replace(SPACE, " ") if kind == USER_DEFINED else text for text, _, kind in pieces)
    return Vocabulary(
        model="spm",
        tokens=tokens,
        kinds=tuple(kind for _, _, kind in pieces),
        scores=tuple(score for _, score, _ in pieces),
        add_bos=special(41, 1) is not None,
        add_space_prefix=bool(normalizer.get(3, 1)),
        unk_id=special(40, 0),
        bos_id=special(41, 1),
        eos_id=special(42, 2),
        pad_id=special(43, -1),
    )


def _refuse_unsupported(trainer: dict[int, Any], normalizer: dict[int, Any], path: Path) -> None:
    kind = trainer.get(3, 1)
    if kind != 2:
        raise UnsupportedArchitecture(
            f"{path} is a SentencePiece {_MODEL_TYPES.get(kind, kind)} model; only BPE models are supported"
        )
    if normalizer.get(2, b""):
        name = normalizer.get(1, b"")
        shown = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        raise UnsupportedArchitecture(f"{path} normalises text with the table {shown!r}; only identity is supported")
    if normalizer.get(4, 1):
        raise UnsupportedArchitecture(f"{path} removes repeated spaces (remove_extra_whitespaces), not supported")
    if not normalizer.get(5, 1) or trainer.get(24, 0):
        raise UnsupportedArchitecture(f"{path} spells spaces in a way that is not supported")


def _piece(data: bytes, index: int, path: Path) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data, path):
        if number == 1 and isinstance(value, bytes):
            try:
                text = value.decode("utf-8")
            except UnicodeDecodeError:
                raise CorruptArtifact(path, f"text of piece {index}", value, "UTF-8") from None
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3:
            kind = value
    if kind not in range(1, 7):
        raise CorruptArtifact(path, f"type of piece {index}", kind, "1 to 6")
    return text, score, kind


def _message(value: Any, number: int, path: Path) -> bytes:
    if not isinstance(value, bytes):
        raise CorruptArtifact(path, f"wire type of field {number}", type(value).__name__, "a message")
    return value


def _signed(value: Any) -> int:
    """A protobuf int32: negative numbers are written as 64-bit two's complement."""
    return value - (1 << 64) if isinstance(value, int) and value >= 1 << 63 else int(value)


def _fields(data: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one message: int for varints, float for 32 bits, bytes otherwise."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position, path)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise CorruptArtifact(path, f"field number at byte {position}", 0, "at least 1")
        if wire == 0:
            value, position = _varint(data, position, path)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(data, position, path)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise CorruptArtifact(path, f"wire type of field {number}", wire, "0, 1, 2 or 5")
        if length > end - position:
            raise CorruptArtifact(path, f"length of field {number}", length, f"at most {end - position} bytes")
        chunk = data[position : position + length]
        position += length
        yield number, struct.unpack("<f", chunk)[0] if wire == 5 else chunk


def _varint(data: bytes, position: int, path: Path) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise CorruptArtifact(path, "a number", "end of data", "complete varints")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & ((1 << 64) - 1), position
    raise CorruptArtifact(path, f"number at byte {position}", "more than ten bytes", "at most ten")
