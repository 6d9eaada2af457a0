"""Held-out conversations as an application would send them: messages for `Model.chat`, and the turn to predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wattwise
from models.data import read_documents
from models.documents import Document, fraction_of
from wattwise.model import Model
from wattwise_devices.errors import BackendUnavailable
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.registry import get_backend

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
    prepared: Path, source: str, choose: Callable[[Document], int | None], fits: Callable[[Asked], bool]
) -> Iterator[Asked]:
    """One question of each held-out document that has one and fits, in an order that the contents alone decide."""
    documents = sorted(read_documents(prepared, source, "held"), key=lambda document: fraction_of(document.rendered()))
    for document in documents:
        turn = choose(document)
        if turn is not None and fits(question := asked(source, document, turn)):
            yield question


def spread(prepared: Path, sources: Sequence[str], count: int, fits: Callable[[Asked], bool]) -> list[Asked]:
    """`count` last turns, one from each source with conversations in turn, as long as each lasts."""
    streams = [held_out(prepared, name, last_turn, fits) for name in sources]
    chosen: list[Asked] = []
    while streams and len(chosen) < count:
        for stream in list(streams):
            found = next(stream, None)
            if found is None:
                streams.remove(stream)
            elif len(chosen) < count:
                chosen.append(found)
    return sorted(chosen, key=lambda one: one.source)


def room_in(model: Model, reply_tokens: int) -> Callable[[Asked], bool]:
    """Whether a question and its reply fit the model's context."""

    def fits(question: Asked) -> bool:
        prompt = model.prompt_ids(question.messages, tools=question.tools or None)
        return len(prompt) + reply_tokens <= model.engine.kv.capacity_tokens

    return fits


def installed_engines(wanted: Sequence[str] = ("llamacpp", "onnx")) -> list[str]:
    """Those of the engines that can run here."""
    found = []
    for name in wanted:
        try:
            get_backend(name)
        except BackendUnavailable:
            continue
        found.append(name)
    return found


def open_model(path: Path, engine: str) -> Model:
    """The model with its whole context."""
    return wattwise.load(path, engine=engine, context=open_artifact(path).spec.context)
