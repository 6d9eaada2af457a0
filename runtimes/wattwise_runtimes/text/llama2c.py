"""llama2.c's tokenizer.bin: scores and pieces of a SentencePiece BPE vocabulary in a flat file.

int32 length of the longest piece, then per token float32 score, int32 length, bytes; little-endian. Ids 0, 1, 2
are unknown, BOS and EOS, 3 to 258 the bytes, either raw or spelled <0x0A>. Spaces stand as spaces.
"""

from __future__ import annotations

import struct
from pathlib import Path

from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.formats.checked import read_range, regular_file_size
from wattwise_runtimes.text.vocabulary import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, Vocabulary

MAX_BYTES = 64 << 20
FIRST_BYTE = 3
FIRST_MERGED = FIRST_BYTE + 256
_SPECIAL = ("<unk>", "<s>", "</s>")


def read_tokenizer_bin(path: Path) -> Vocabulary:
    """The vocabulary of a llama2.c tokenizer.bin."""
    size = regular_file_size(path)
    if size > MAX_BYTES:
        raise CorruptArtifact(path, "file size in bytes", size, f"at most {MAX_BYTES}")
    pieces = _pieces(bytes(read_range(path, 0, size, "tokenizer")), path)
    if len(pieces) < FIRST_MERGED:
        raise CorruptArtifact(path, "number of tokens", len(pieces), f"at least {FIRST_MERGED}")
    tokens = list(_SPECIAL) + [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    scores = [0.0] * FIRST_MERGED
    for i in range(FIRST_BYTE, FIRST_MERGED):
        byte = i - FIRST_BYTE
        # Files differ: the raw byte, the character of that number in UTF-8, <0x0A>, and nothing for NUL.
        if pieces[i][1] not in (bytes((byte,)), chr(byte).encode(), tokens[i].encode(), b"" if byte == 0 else None):
            raise CorruptArtifact(path, f"token {i}", pieces[i][1], f"byte {byte}")
    for i, (score, piece) in enumerate(pieces[FIRST_MERGED:], start=FIRST_MERGED):
        try:
            tokens.append(piece.decode("utf-8").replace(" ", SPACE))
        except UnicodeDecodeError:
            raise CorruptArtifact(path, f"token {i}", piece, "UTF-8") from None
        kinds.append(NORMAL)
        scores.append(score)
    return Vocabulary(
        model="spm",
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        scores=tuple(scores),
        add_bos=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        eog_ids=(1,),  # llama2.c's training put BOS between texts, so a text ends there
    )


def _pieces(data: bytes, path: Path) -> list[tuple[float, bytes]]:
    pieces: list[tuple[float, bytes]] = []
    position = 4
    if len(data) < position:
        raise CorruptArtifact(path, "file size in bytes", len(data), "at least 4")
    longest = struct.unpack_from("<i", data)[0]
    while position < len(data):
        if len(data) - position < 8:
            raise CorruptArtifact(path, f"token {len(pieces)}", f"{len(data) - position} bytes", "at least 8")
        score, length = struct.unpack_from("<fi", data, position)
        position += 8
        if not 0 <= length <= min(len(data) - position, max(longest, 6)):
            limit = min(len(data) - position, max(longest, 6))
            raise CorruptArtifact(path, f"length of token {len(pieces)}", length, f"0 to {limit}")
        pieces.append((score, data[position : position + length]))
        position += length
    return pieces
