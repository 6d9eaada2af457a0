"""Events: everything that the system did, or noticed, by itself. They stand on the reply and in the terminal.

Each is a frozen dataclass with a sentence for people (`message`) and the numbers behind it; `to_json()` adds the
kind. Asking for something and getting it is no event.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted(Event):
    """Rows left the KV cache, so the model no longer sees these tokens as they were.

    rows: how many every head dropped. tokens: how many no head holds any more; fewer, where heads drop different ones.
    messages: (index, tokens) of each message that lost some, -1 for what stands before the first. score: mean worth of
    the rows by the policy's measure, None where heads differ. kv_tokens: rows held afterwards.
    """

    policy: str
    rows: int
    tokens: int
    messages: tuple[tuple[int, int], ...]
    score: float | None
    kv_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BroughtBack(Event):
    """Evicted rows of a message that was pinned since came back from disk. tokens: how many; messages: by index."""

    tokens: int
    messages: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpillFailed(Event):
    """Evicted rows could not be put on disk; should they be needed again, the text is read again."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsMoved(Event):
    """After an edit the rows behind it were moved to their new positions, as asked for, and not read again.

    tokens: how many; 0: too few stood behind the edit, so they were read. by: positions that they went. error: relative
    error of their keys right behind the edit, None without a move.
    """

    tokens: int
    by: int
    error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAgain(Event):
    """Evicted tokens were needed after all (their message was pinned since): the text was read again from there.

    tokens: how many had been evicted. messages: whose they are, by index. read_again: tokens computed once more.
    """

    tokens: int
    messages: tuple[int, ...]
    read_again: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityLow(Event):
    """The KV guard looked at an eviction: after it the model's first choices differ more often than they may.

    agreement, least: shares of equal first choices. widened_to: tokens of the KV budget from now on, None: unchanged.
    """

    agreement: float
    least: float
    widened_to: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summarised(Event):
    """The oldest messages of a conversation were replaced by a summary, because it had become too long.

    messages: their indices before. tokens_before, tokens_after: of the whole prompt.
    """

    messages: tuple[int, ...]
    summary: str
    tokens_before: int
    tokens_after: int


@dataclass(frozen=True, slots=True)
class TemplateMissing(Event):
    """The model brings no chat template, so the plain built-in one was used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorEvent(Event):
    """From the governor. at_s: seconds since it began watching."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlMoved(GovernorEvent):
    """The governor moved a control.

    control: "threads", "threads_batch", "pace", "draft_depth" or "device". limit: what made it move: "power",
    "temperature", "under-voltage", "battery" or "speed". measured and allowed are in `unit`, None where unknown;
    source: what measured it, and whether it was an estimate.
    """

    control: str
    before: float | str
    after: float | str
    limit: str
    measured: float | None = None
    allowed: float | None = None
    unit: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttled(ControlMoved):
    """A control was moved down to stay inside a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released(ControlMoved):
    """A control that had been taken was handed back: there is room again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retuned(ControlMoved):
    """A setting that gives more tokens for the same watts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatteryFloor(GovernorEvent):
    """The battery is under the floor while the device runs from it. action: "stop" or "pace"."""

    percent: float
    floor_percent: float
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OnBattery(GovernorEvent):
    """The device now runs from its battery."""

    percent: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnMains(GovernorEvent):
    """The device is plugged in again."""

    percent: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderVoltage(GovernorEvent):
    """The supply voltage has dropped: the power supply or its cable cannot bring the current of this load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareThrottled(GovernorEvent):
    """The machine's firmware slows the processor by itself."""

    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorLost(GovernorEvent):
    """A sensor that a limit depends on has stopped answering; the last safe setting is held."""

    sensor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorBack(GovernorEvent):
    """The sensor answers again."""

    sensor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUnreachable(GovernorEvent):
    """Even the lowest setting does not meet the limit: what is left is not ours (idle power, heat from elsewhere)."""

    limit: str
    measured: float
    allowed: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEvent(Event):
    """Of a saved conversation. session: its id."""

    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSaved(SessionEvent):
    """The conversation is on disk now. Told the first time, and again after it could not be saved; not every turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionNotSaved(SessionEvent):
    """This turn is not on disk, or (has_text) only its text is. Told once for each reason; every turn tries again."""

    reason: str
    has_text: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionResumed(SessionEvent):
    """Rows of so many tokens were read from disk, in `ms`, instead of being computed."""

    tokens: int
    ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRefused(SessionEvent):
    """The session's saved rows were not used, so its text is read again."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionForked(SessionEvent):
    """Another process has session `origin` open, or has gone on with it: this conversation goes on as a copy of it."""

    origin: str


def in_words(events: Iterable[Event]) -> list[str]:
    """What to tell a person after a reply: a line each, but one for all moves of controls and one for all evictions."""
    told = list(events)
    moves = [event for event in told if isinstance(event, ControlMoved)]
    evicted = [event for event in told if isinstance(event, Evicted)]
    lines = [event.message for event in told if not isinstance(event, (ControlMoved, Evicted))]
    if evicted:
        rows, tokens = sum(event.rows for event in evicted), sum(event.tokens for event in evicted)
        messages = sorted({index for event in evicted for index, _ in event.messages})
        what = f"{tokens} tokens" if rows == tokens else f"{rows} rows of every head, {tokens} tokens from all of them"
        of = f", of {told_messages(messages)}" if messages else ""
        lines.append(f"{evicted[-1].policy} evicted {what}{of}")
    if moves:
        limits = sorted({event.limit for event in moves})
        times = "once" if len(moves) == 1 else f"{len(moves)} times"
        lines.append(f"controls were moved {times} to keep to {', '.join(limits)}; the last: {moves[-1].message}")
    return lines


def told_messages(messages: Iterable[int]) -> str:
    """Indices of messages in words, numbered from 1 as people count; -1 is what stands before the first."""
    numbers = [index + 1 for index in messages if index >= 0]
    preamble = ["the beginning"] if any(index < 0 for index in messages) else []
    if not numbers:
        return "the beginning" if preamble else "no message"
    word = "message" if len(numbers) == 1 else "messages"
    return " and ".join([*preamble, f"{word} {', '.join(map(str, numbers))}"])
