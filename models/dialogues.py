"""Held-out conversations as an application would send them: messages for `Model.chat`, and the turn to predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.data import read_documents, source_names
from models.documents import Document, fraction_of

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A conversation up to a turn of the assistant, and what the data has there."""

    source: str
    messages: Messages
    tools: list[dict[str, Any]]
    gold: str


def messages_of(document: Document, turn: int) -> Messages:
    """The turns before `turn`. A call stays in the assistant's text: its marks are tokens there too."""
    return [{"role": before.role, "content": before.content} for before in document.turns[:turn]]


def asked(source: str, document: Document, turn: int) -> Asked:
    return Asked(
        source=source,
        messages=messages_of(document, turn),
        tools=list(document.tools),
        gold=document.turns[turn].content,
    )


def last_turn(document: Document) -> int | None:
    """The assistant's last turn, if something stands before it."""
    turns = [at for at, turn in enumerate(document.turns) if turn.role == "assistant" and at > 0]
    return turns[-1] if turns else None


def held_out(
    prepared: Path, source: str, choose: Callable[[Document], int | None], *, most_chars: int
) -> Iterator[Asked]:
    """One question of each held-out document that has one, in an order that depends on the contents alone.

    most_chars: conversations longer than this are passed over, so that every context holds them.
    """
    documents = sorted(read_documents(prepared, source, "held"), key=lambda document: fraction_of(document.rendered()))
    for document in documents:
        turn = choose(document)
        if turn is not None and len(document.rendered()) <= most_chars:
            yield asked(source, document, turn)


def spread(prepared: Path, count: int, *, most_chars: int) -> list[Asked]:
    """`count` last turns, taken from all sources with conversations in turn, as long as each lasts."""
    streams = [held_out(prepared, name, last_turn, most_chars=most_chars) for name in sorted(source_names(prepared))]
    chosen: list[Asked] = []
    while streams and len(chosen) < count:
        for stream in list(streams):
            found = next(stream, None)
            if found is None:
                streams.remove(stream)
            elif len(chosen) < count:
                chosen.append(found)
    return sorted(chosen, key=lambda one: one.source)
