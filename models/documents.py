"""The one form every training source is read into, and the split that keeps some of it unseen.

A document is either running text or a conversation. A conversation is rendered in ChatML, the template that
the exported model ships with, together with a mask that says which pieces the assistant wrote. The held-out
split goes by a hash of the content: it stays the same whatever order or machine reads the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TURN_START, TURN_END, DOCUMENT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TOOL_CALL_START, TOOL_CALL_END = "<tool_call>", "</tool_call>"
SPECIAL_TOKENS = (DOCUMENT_END, TURN_START, TURN_END, TOOL_CALL_START, TOOL_CALL_END)

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    role: str  # "system", "user", "assistant" or "tool" (what a tool returned)
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Running text (`text`) or a conversation (`turns`), never both.

    tools: the functions that the assistant may call in this conversation, in OpenAI's shape.
    """

    text: str = ""
    turns: tuple[Turn, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """The text as it is trained on, in pieces, each with whether the assistant wrote it.

        The closing `<|im_end|>` of an assistant's turn counts as written by it: a model that is not taught
        to write it never stops by itself.
        """
        if not self.turns:
            yield self.text, False
            return
        turns = self.turns
        if self.tools:
            has_system = turns[0].role == "system"
            before = f"{turns[0].content}\n\n" if has_system else ""
            turns = turns[1:] if has_system else turns
            yield f"{TURN_START}system\n{before}{describe_tools(self.tools)}{TURN_END}\n", False
        for turn in turns:
            yield f"{TURN_START}{turn.role}\n", False
            yield turn.content + TURN_END, turn.role == "assistant"
            yield "\n", False

    def rendered(self) -> str:
        return "".join(piece for piece, _ in self.pieces())

    def to_json(self) -> dict[str, object]:
        if self.turns:
            row: dict[str, object] = {"turns": [[turn.role, turn.content] for turn in self.turns]}
            return row | ({"tools": list(self.tools)} if self.tools else {})
        return {"text": self.text}

    @classmethod
    def from_json(cls, row: dict[str, object]) -> Document:
        turns = row.get("turns")
        if isinstance(turns, list):
            tools = row.get("tools")
            return cls(
                turns=tuple(Turn(role=role, content=content) for role, content in turns),
                tools=tuple(tools) if isinstance(tools, list) else (),
            )
        return cls(text=str(row["text"]))


def describe_tools(tools: Sequence[dict[str, Any]]) -> str:
    """The list of tools as the chat template writes it, one line each: `- name(a, b?: integer): what it does`.

    A JSON schema of each would fill the context of a small model; this says the same in a tenth of the tokens.
    A `?` marks an argument that may be left out; a type is written unless it is a string.
    """
    lines = ["# Tools"]
    for tool in tools:
        function = tool["function"]
        parameters = function.get("parameters") or {}
        required = parameters.get("required") or []
        arguments = []
        for name, schema in (parameters.get("properties") or {}).items():
            optional = "" if name in required else "?"
            if schema.get("enum"):
                kind = ": " + "|".join(str(value) for value in schema["enum"])
            else:
                kind = ": " + schema["type"] if schema.get("type", "string") != "string" else ""
            arguments.append(name + optional + kind)
        about = ": " + function["description"] if function.get("description") else ""
        lines.append(f"- {function['name']}({', '.join(arguments)}){about}")
    return "\n".join(lines)


def tool_call(name: str, arguments: dict[str, Any]) -> str:
    """An assistant's turn that calls a tool."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{TOOL_CALL_START}{body}{TOOL_CALL_END}"


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
