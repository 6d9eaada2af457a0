"""Tokenizer: text to ids and back, the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence


class Tokenizer:
    """Interface (filled in by the text layer).

    vocab_size, bos_id, eog_ids (every id that ends a reply), add_bos, chat_template (source or None).
    """

    vocab_size: int
    bos_id: int | None
    eog_ids: frozenset[int]
    add_bos: bool
    chat_template: str | None

    def encode(self, text: str, *, bos: bool = False, parse_special: bool = False) -> list[int]:
        """Ids of a text. bos: put BOS in front if the tokenizer does so. parse_special: control tokens may be spelled."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD."""
        raise NotImplementedError

    def token_bytes(self, token: int) -> bytes:
        """Bytes that this token adds to a text (empty for a control token)."""
        raise NotImplementedError
