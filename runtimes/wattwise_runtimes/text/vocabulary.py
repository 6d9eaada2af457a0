"""Vocabulary: a tokenizer as plain data, in GGUF's terms, which both our formats can be written from.

Every source (tokenizer.json, SentencePiece, rank files, GGUF, ...) is read into one, and the tokenizer that runs
is built from it alone: no foreign description of a tokenizer ever reaches native code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"  # how SentencePiece spells a space


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens by id and how text is split into them.

    model: "spm" (SentencePiece BPE with scores and byte fallback; GGUF calls it "llama") or
    "bpe" (byte-level BPE with merges; GGUF calls it "gpt2").
    tokens: text of each id as GGUF spells it. kinds: GGUF token types (1 normal, 2 unknown, 3 control,
    4 user defined, 5 unused, 6 byte). scores: for "spm". merges: for "bpe", "left right", best first; for "spm"
    only where the source lists them (otherwise they follow from the scores).
    pre: GGUF's name of the pre-tokenizer ("default", "gpt-2", "llama-bpe", "qwen2", "smollm", ...).
    prefix_rule: where "spm" puts the space that add_space_prefix asks for: before each run of text between
    special tokens ("each"), the same unless a space is there ("each-missing"), or only at the very start and
    unless a space is there ("first-missing"). GGUF knows only "each".
    lstrip_ids, rstrip_ids: special tokens that swallow the blanks before or after them in a text.
    eog_ids: further ids that end a reply, from generation_config.json. chat_templates: named ones besides the
    default, as (name, source).
    """

    model: Literal["spm", "bpe"]
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    pre: str = "default"
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = True
    bos_id: int | None = None
    eos_id: int | None = None
    eot_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    chat_template: str | None = None
    prefix_rule: Literal["each", "each-missing", "first-missing"] = "each"
    lstrip_ids: frozenset[int] = frozenset()
    rstrip_ids: frozenset[int] = frozenset()
    eog_ids: tuple[int, ...] = ()
    chat_templates: tuple[tuple[str, str], ...] = ()


def byte_alphabet() -> dict[int, str]:
    """GPT-2's spelling of the 256 bytes as printable characters: byte -> character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelling = {byte: chr(byte) for byte in printable}
    for extra, byte in enumerate(byte for byte in range(256) if byte not in spelling):
        spelling[byte] = chr(256 + extra)
    return spelling


BYTE_SPELLING = byte_alphabet()
BYTE_OF = {character: byte for byte, character in BYTE_SPELLING.items()}


def spell_bytes(data: bytes) -> str:
    """Bytes as a byte-level vocabulary spells them."""
    return "".join(BYTE_SPELLING[byte] for byte in data)


def unspell(text: str) -> bytes:
    """Bytes of a byte-level token; characters outside the byte alphabet stand for themselves."""
    try:
        return bytes(BYTE_OF[character] for character in text)
    except KeyError:
        return b"".join(bytes((BYTE_OF[c],)) if c in BYTE_OF else c.encode("utf-8", "surrogatepass") for c in text)
