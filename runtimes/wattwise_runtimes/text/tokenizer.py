"""Tokenizer: text to ids and back, the same for every engine.

Runs a Vocabulary on the `tokenizers` library. Two rules of its own: a control token that a text merely spells is
encoded as text unless `parse_special` is asked for (what a person types can never end a turn), and decoding goes
through the exact bytes of each token. Not here: reading vocabularies from files, see `text.sources`.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from wattwise_devices.errors import CorruptArtifact, PlanError
from wattwise_runtimes.text.backend import build
from wattwise_runtimes.text.vocabulary import (
    BYTE,
    BYTE_SPELLING,
    CONTROL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    unspell,
)

# Control tokens that end a reply whatever else a file says: turn ends and document ends of the model families.
END_TEXTS = frozenset(
    (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>",
        "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
        "<｜end▁of▁sentence｜>", "</s>",
    )
)  # fmt: skip
MAX_TOKENS = 1 << 21


class Tokenizer:
    """A vocabulary at work.

    vocab_size, bos_id, eog_ids (every id that ends a reply), add_bos, chat_template (source or None).
    vocabulary: the plain data it was made from. Thread-safe.
    """

    vocab_size: int
    bos_id: int | None
    eog_ids: frozenset[int]
    add_bos: bool
    chat_template: str | None

    def __init__(self, vocabulary: Vocabulary) -> None:
        check_vocabulary(vocabulary)
        self.vocabulary = vocabulary
        self.vocab_size = len(vocabulary.tokens)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.add_bos = vocabulary.add_bos and vocabulary.bos_id is not None
        self.chat_template = vocabulary.chat_template
        self.eog_ids = end_ids(vocabulary)
        self._backend = build(vocabulary)
        self._lock = threading.Lock()
        self._special = frozenset(i for i, kind in enumerate(vocabulary.kinds) if kind in (UNKNOWN, CONTROL))
        self._bytes: dict[int, bytes] = {}

    def encode(
        self, text: str, *, bos: bool = False, parse_special: bool = False, continues: bool = False
    ) -> list[int]:
        """Ids of a text.

        bos: put BOS in front if the tokenizer does so. parse_special: `<|im_end|>` in the text is the token.
        continues: the text goes on after other text, so no space is put in front (SentencePiece).
        """
        backend = self._continuing if continues else self._backend
        ids = self._encode(backend, text, parse_special)
        if bos and self.add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        return ids

    def _encode(self, backend: Any, text: str, parse_special: bool) -> list[int]:
        if not text:
            return []
        # Lone surrogates (undecodable bytes of a terminal) have no UTF-8 form.
        clean = text.encode("utf-8", "replace").decode() if not text.isascii() else text
        if self._missing:
            self._refuse_missing(clean)
        with self._lock:
            backend.encode_special_tokens = not parse_special
            encoding = backend.encode(clean, add_special_tokens=False)
        ids = encoding.ids
        if not parse_special and not self._controls.isdisjoint(ids):
            return self._encode_around(clean, encoding)
        return ids

    def _encode_around(self, text: str, encoding: Any) -> list[int]:
        """A whole word of the text is the name of a control token (possible with ignore_merges): cut it in two."""
        at = next(i for i, token in enumerate(encoding.ids) if token in self._controls)
        start, stop = encoding.offsets[at]
        if stop - start < 2:
            raise CorruptArtifact(
                "vocabulary", f"control token {encoding.ids[at]}", text[start:stop], "several characters"
            )
        middle = (start + stop) // 2
        before = self._encode(self._backend, text[:middle], False)
        return before + self._encode(self._continuing, text[middle:], False)

    @cached_property
    def _missing(self) -> frozenset[int]:
        """Bytes that a byte-level vocabulary cannot spell: text with one would silently lose it."""
        if self.vocabulary.model != "bpe":
            return frozenset()
        known = set(self.vocabulary.tokens)
        return frozenset(byte for byte, spelling in BYTE_SPELLING.items() if spelling not in known)

    def _refuse_missing(self, text: str) -> None:
        for character in set(text):
            if not self._missing.isdisjoint(character.encode()):
                raise PlanError(
                    f"the text has {character!r}, which this vocabulary cannot spell (it lacks {len(self._missing)} of "
                    "the 256 bytes). Leave the character out or use another model.",
                    ("the text", "the vocabulary"),
                )

    @cached_property
    def _continuing(self) -> Any:
        """A backend that puts no space in front."""
        if not self.strips_first_space:
            return self._backend
        return build(dataclasses.replace(self.vocabulary, add_space_prefix=False))

    @cached_property
    def _controls(self) -> frozenset[int]:
        return frozenset(i for i in self._special if self.vocabulary.kinds[i] == CONTROL)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD.

        The space that `encode` puts in front of a text is taken away again.
        """
        parts = []
        for token in ids:
            if token in self._special:
                if not skip_special:
                    parts.append(self.vocabulary.tokens[token].encode())
            else:
                parts.append(self.token_bytes(token))
        text = b"".join(parts).decode("utf-8", "replace")
        if self.strips_first_space and text.startswith(" "):
            return text[1:]
        return text

    @property
    def strips_first_space(self) -> bool:
        """Whether a text begins with a space that only the tokenizer put there."""
        return self.vocabulary.model == "spm" and self.vocabulary.add_space_prefix

    def token_bytes(self, token: int) -> bytes:
        """Bytes that this token adds to a text (empty for a control token)."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = token_bytes(self.vocabulary, token)
        return known

    def token_text(self, token: int) -> str:
        """The token as the vocabulary spells it, for display."""
        self._check(token)
        return self.vocabulary.tokens[token]

    def id_of(self, text: str) -> int | None:
        """Id of the token that is spelled so in the vocabulary, or None."""
        return self._backend.token_to_id(text)

    def is_special(self, token: int) -> bool:
        """Whether the token is a control token (or the unknown one): never part of a shown text."""
        return token in self._special

    def to_json(self) -> str:
        """The text of a tokenizer.json with the same behaviour, for transformers and onnxruntime-genai."""
        with self._lock:
            self._backend.encode_special_tokens = False
            return self._backend.to_str()

    def _check(self, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size}")


def token_bytes(vocabulary: Vocabulary, token: int) -> bytes:
    """Bytes that a token adds to a text."""
    if not 0 <= token < len(vocabulary.tokens):
        raise ValueError(f"token id {token} is outside the vocabulary of {len(vocabulary.tokens)}")
    text, kind = vocabulary.tokens[token], vocabulary.kinds[token]
    if kind in (UNKNOWN, CONTROL, UNUSED):
        return b""
    if kind == BYTE:
        return bytes((int(text[3:5], 16),))
    if vocabulary.model == "spm":
        return text.replace(SPACE, " ").encode("utf-8", "replace")
    if kind == USER_DEFINED:
        return text.encode("utf-8", "replace")
    return unspell(text)


def end_ids(vocabulary: Vocabulary) -> frozenset[int]:
    """Every id that ends a reply: declared ones, and control tokens with the well-known names of an end."""
    declared = {vocabulary.eos_id, vocabulary.eot_id, *vocabulary.eog_ids} - {None}
    named = {
        i
        for i, kind in enumerate(vocabulary.kinds)
        if kind == CONTROL and vocabulary.tokens[i] in END_TEXTS and i != vocabulary.bos_id
    }
    return frozenset(i for i in declared | named if i is not None)


def check_vocabulary(vocabulary: Vocabulary) -> None:
    """Refuse a vocabulary that native code would choke on; the message names the field, the value and the limit."""
    count = len(vocabulary.tokens)
    if not 0 < count <= MAX_TOKENS:
        raise CorruptArtifact("vocabulary", "number of tokens", count, f"1 to {MAX_TOKENS}")
    if len(vocabulary.kinds) != count:
        raise CorruptArtifact("vocabulary", "number of token types", len(vocabulary.kinds), count)
    if vocabulary.model == "spm" and len(vocabulary.scores) != count:
        raise CorruptArtifact("vocabulary", "number of scores", len(vocabulary.scores), count)
    if any(score != score for score in vocabulary.scores):
        raise CorruptArtifact("vocabulary", "score", "not a number", "numbers")
    _check_texts(vocabulary)
    for name in ("bos_id", "eos_id", "eot_id", "unk_id", "pad_id"):
        token = getattr(vocabulary, name)
        if token is not None and not 0 <= token < count:
            raise CorruptArtifact("vocabulary", name, token, f"below {count}")
    for token in (*vocabulary.eog_ids, *vocabulary.lstrip_ids, *vocabulary.rstrip_ids):
        if not 0 <= token < count:
            raise CorruptArtifact("vocabulary", "special token id", token, f"below {count}")


def _check_texts(vocabulary: Vocabulary) -> None:
    seen: dict[str, int] = {}
    for i, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        if not text:
            raise CorruptArtifact("vocabulary", f"token {i}", text, "at least one character")
        if seen.setdefault(text, i) != i:
            raise CorruptArtifact("vocabulary", f"token {i}", text, f"a text that token {seen[text]} does not have")
        if not 1 <= kind <= 6:
            raise CorruptArtifact("vocabulary", f"type of token {i}", kind, "1 to 6")
        if kind == BYTE and not _is_byte(text):
            raise CorruptArtifact("vocabulary", f"byte token {i}", text, "a spelling like <0x0A>")


def _is_byte(text: str) -> bool:
    if len(text) != 6 or not text.startswith("<0x") or not text.endswith(">"):
        return False
    return all(c in "0123456789abcdefABCDEF" for c in text[3:5])
