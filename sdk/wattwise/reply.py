"""What generation hands out: pieces while it runs, a reply at its end, and events for what was done unasked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from wattwise.stats import Stats

FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "budget"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something the system did, or noticed, by itself. Subclasses name it; `message` says it in words."""

    message: str

    def to_json(self) -> dict[str, Any]:
        """The fields and the kind."""
        return {"kind": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True, slots=True)
class ContextFull(Event):
    """The reply ended because the context holds no more tokens."""

    context: int


@dataclass(frozen=True, slots=True)
class TemplateMissing(Event):
    """The model brings no chat template, so the plain built-in one was used."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a reply, always valid UTF-8. `stats` is the live object of the reply, not a copy."""

    text: str
    stats: Stats
    kind: Literal["text", "reasoning", "tool"] = "text"
    from_draft: bool = False


@dataclass(slots=True, kw_only=True)
class Reply:
    """A finished (or stopped) reply; `str(reply)` is its text. ids: every generated token, the ending one included."""

    text: str
    ids: list[int]
    finish_reason: FinishReason
    stats: Stats
    plan: Any = None
    events: list[Event] = field(default_factory=list)
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """The object that `wattwise run --json` prints."""
        return {
            "text": self.text,
            "ids": self.ids,
            "finish_reason": self.finish_reason,
            "tool_calls": self.tool_calls,
            "stats": self.stats.to_json(),
            "plan": self.plan.to_json() if self.plan is not None else None,
            "events": [event.to_json() for event in self.events],
        }
