"""Vocabulary: a tokenizer as plain data, in GGUF's terms, which both our formats can be written from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens by id and how text is split into them.

    model: "spm" (SentencePiece BPE with scores and byte fallback; GGUF calls it "llama") or
    "bpe" (byte-level BPE with merges; GGUF calls it "gpt2").
    tokens: text of each id as GGUF spells it. kinds: GGUF token types (1 normal, 2 unknown, 3 control,
    4 user defined, 5 unused, 6 byte). scores: for "spm". merges: for "bpe", "left right", best first.
    pre: GGUF's name of the pre-tokenizer ("default", "gpt-2", "llama-bpe", "qwen2", "smollm", ...).
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
