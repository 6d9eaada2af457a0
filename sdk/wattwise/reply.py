"""What generation hands out: pieces while it runs, and a reply at its end, with the events of `wattwise.events`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from wattwise.events import Event
from wattwise.stats import Stats

FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "budget"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a reply, always valid UTF-8. `stats` is the live object of the reply, not a copy."""

    text: str
    stats: Stats
    kind: Literal["text", "reasoning", "tool"] = "text"
    from_draft: bool = False


@dataclass(slots=True, kw_only=True)
class Reply:
    """A finished (or stopped) reply; `str(reply)` is its text. ids: every generated token, the ending one included.

    report: predicted beside measured, once the reply has ended.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason
    stats: Stats
    plan: Any = None
    report: Any = None
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
            "report": self.report.to_json() if self.report is not None else None,
            "events": [event.to_json() for event in self.events],
        }
