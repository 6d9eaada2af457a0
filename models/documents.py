"""The one form every training source is read into, and the split that keeps some of it unseen.

A document is either running text or a conversation. A conversation is rendered in ChatML, the template that
the exported model ships with, together with a mask that says which pieces the assistant wrote. The held-out
split goes by a hash of the content: it stays the same whatever order or machine reads the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

TURN_START, TURN_END, DOCUMENT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = (DOCUMENT_END, TURN_START, TURN_END, "<tool_call>", "</tool_call>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    role: str  # "system", "user" or "assistant"
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Running text (`text`) or a conversation (`turns`), never both."""

    text: str = ""
    turns: tuple[Turn, ...] = ()

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """The text as it is trained on, in pieces, each with whether the assistant wrote it.

        The closing `<|im_end|>` of an assistant's turn counts as written by it: a model that is not taught
        to write it never stops by itself.
        """
        if not self.turns:
            yield self.text, False
            return
        for turn in self.turns:
            yield f"{TURN_START}{turn.role}\n", False
            yield turn.content + TURN_END, turn.role == "assistant"
            yield "\n", False

    def rendered(self) -> str:
        return "".join(piece for piece, _ in self.pieces())

    def to_json(self) -> dict[str, object]:
        if self.turns:
            return {"turns": [[turn.role, turn.content] for turn in self.turns]}
        return {"text": self.text}

    @classmethod
    def from_json(cls, row: dict[str, object]) -> Document:
        turns = row.get("turns")
        if isinstance(turns, list):
            return cls(turns=tuple(Turn(role=role, content=content) for role, content in turns))
        return cls(text=str(row["text"]))


def conversation(contents: list[str], *, system: str = "") -> Document:
    """Turns that alternate, the user first."""
    roles = ("user", "assistant")
    turns = [Turn(role=roles[i % 2], content=content) for i, content in enumerate(contents)]
    if system:
        turns.insert(0, Turn(role="system", content=system))
    return Document(turns=tuple(turns))


def is_held_out(text: str, *, permille: int) -> bool:
    """Whether this content belongs to the part that is never trained on."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < permille


def fraction_of(text: str) -> float:
    """A number in [0, 1) that depends on the content alone: choices that must not depend on reading order."""
    digest = hashlib.sha256(b"choice:" + text.encode("utf-8")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
