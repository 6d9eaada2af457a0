"""Rank files in tiktoken's form (Llama 3's `tokenizer.model`): base64 token and rank on every line.

A token's rank is its id and its merge priority: the adjacent pair whose joint token has the lowest rank is joined
first. Special tokens come after the ranks, from tokenizer_config.json.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.formats.checked import read_range, regular_file_size
from wattwise_runtimes.text.hf_folder import FolderSettings
from wattwise_runtimes.text.vocabulary import NORMAL, Vocabulary, spell_bytes

MAX_BYTES = 64 << 20
MAX_TOKEN_BYTES = 1024


def is_rank_file(path: Path) -> bool:
    """Whether the file begins with a line "<base64> <rank>"."""
    with open(path, "rb") as file:
        line = file.read(256).split(b"\n", 1)[0].rstrip(b"\r")
    parts = line.split(b" ")
    return len(parts) == 2 and parts[1].isdigit() and _decoded(parts[0]) is not None


def read_rank_file(path: Path, settings: FolderSettings) -> Vocabulary:
    """The vocabulary of a rank file; Llama 3 is the one family whose files have this form and are known here."""
    ranks = _ranks(path)
    if not any(token.content == "<|begin_of_text|>" for token in settings.added):
        raise UnsupportedArchitecture(
            f"{path} is a rank file without Llama 3's special tokens: a tokenizer_config.json beside it must list "
            "them under added_tokens_decoder."
        )
    tokens = tuple(spell_bytes(token) for token in ranks)
    return Vocabulary(
        model="bpe",
        tokens=tokens,
        kinds=(NORMAL,) * len(tokens),
        merges=tuple(merges_from_ranks(ranks)),
        pre="llama-bpe",
        add_bos=True,
        add_space_prefix=False,
    )


def merges_from_ranks(ranks: dict[bytes, int]) -> list[str]:
    """All pairs of tokens that join into a token, by the rank of that token, then by the ranks of the parts."""
    spelled = {token: spell_bytes(token) for token in ranks}
    merges: list[str] = []
    for token in ranks:
        pairs = []
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                pairs.append((ranks[left], ranks[right], left, right))
        merges.extend(f"{spelled[left]} {spelled[right]}" for _, _, left, right in sorted(pairs))
    return merges


def _ranks(path: Path) -> dict[bytes, int]:
    size = regular_file_size(path)
    if size > MAX_BYTES:
        raise CorruptArtifact(path, "file size in bytes", size, f"at most {MAX_BYTES}")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(bytes(read_range(path, 0, size, "ranks")).split(b"\n"), start=1):
        parts = line.strip().split(b" ")
        if parts == [b""]:
            continue
        token = _decoded(parts[0]) if len(parts) == 2 and parts[1].isdigit() else None
        if not token or len(token) > MAX_TOKEN_BYTES or len(parts[1]) > 9:
            raise CorruptArtifact(path, f"line {number}", line[:80], "base64 token, a space and its rank")
        if int(parts[1]) != len(ranks) or token in ranks:
            raise CorruptArtifact(path, f"rank on line {number}", int(parts[1]), f"{len(ranks)}, and each token once")
        ranks[token] = len(ranks)
    missing = [byte for byte in range(256) if bytes((byte,)) not in ranks]
    if missing:
        raise CorruptArtifact(path, "tokens of one byte", 256 - len(missing), f"256 (byte {missing[0]} is missing)")
    return ranks


def _decoded(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) or None
    except (binascii.Error, ValueError):
        return None
