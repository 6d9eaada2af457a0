"""Small vocabularies made on the spot."""

from __future__ import annotations

from typing import Any

from wattwise_runtimes.text.vocabulary import BYTE_SPELLING, CONTROL, NORMAL, UNKNOWN, Vocabulary

MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "Ġwo r", "i m", "e n", "en d")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level(pre: str = "gpt-2", special: tuple[str, ...] = SPECIAL, **changes: Any) -> Vocabulary:
    """The 256 bytes, ten merges and some control tokens."""
    tokens = [*BYTE_SPELLING.values(), *(merge.replace(" ", "") for merge in MERGES), *special]
    kinds = [CONTROL if text in special else NORMAL for text in tokens]
    first = len(tokens) - len(special)
    values: dict[str, Any] = {
        "tokens": tuple(tokens), "kinds": tuple(kinds), "merges": MERGES, "pre": pre, "add_space_prefix": False,
        "bos_id": first, "eos_id": len(tokens) - 1,
    }  # fmt: skip
    return Vocabulary(model="bpe", **{**values, **changes})


SPM_PIECES = ("▁", "a", "b", "c", "é", "▁a", "ab", "bc", "▁ab", "abc", "<s", "s>", "s", "<", ">")


def spm(pieces: tuple[str, ...] = SPM_PIECES, **changes: Any) -> Vocabulary:
    """<unk>, <s>, </s>, the bytes, and pieces whose score falls with their place."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    values: dict[str, Any] = {
        "tokens": tuple(tokens),
        "kinds": (UNKNOWN, CONTROL, CONTROL, *([6] * 256), *([NORMAL] * len(pieces))),
        "scores": (*([0.0] * 259), *(-float(i) for i in range(len(pieces)))),
        "add_bos": True, "unk_id": 0, "bos_id": 1, "eos_id": 2,
    }  # fmt: skip
    return Vocabulary(model="spm", **{**values, **changes})
