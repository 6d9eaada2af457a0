"""Events: everything that the system did, or noticed, by itself. They stand on the reply and in the terminal.

Each is a frozen dataclass with a sentence for people (`message`) and the numbers behind it; `to_json()` adds the
kind. Asking for something and getting it is no event.
"""

from __future__ import annotations

import dataclasses
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


@dataclass(frozen=True, slots=True)
class TemplateMissing(Event):
    """The model brings no chat template, so the plain built-in one was used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlMoved(Event):
    """The governor moved a control. at_s: seconds since it began watching.

    control: "threads", "threads_batch", "pace", "draft_depth" or "device". limit: what made it move: "power",
    "temperature", "under-voltage", "battery" or "speed". measured and allowed are in `unit`, None where unknown.
    """

    at_s: float
    control: str
    before: float | str
    after: float | str
    limit: str
    measured: float | None = None
    allowed: float | None = None
    unit: str = ""


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
class BatteryFloor(Event):
    """The battery is under the floor while the device runs from it. action: "stop" or "pace"."""

    at_s: float
    percent: float
    floor_percent: float
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OnBattery(Event):
    """The device now runs from its battery."""

    at_s: float
    percent: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnMains(Event):
    """The device is plugged in again."""

    at_s: float
    percent: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderVoltage(Event):
    """The supply voltage has dropped: the power supply or its cable cannot bring the current of this load."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareThrottled(Event):
    """The machine's firmware slows the processor by itself."""

    at_s: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorLost(Event):
    """A sensor that a limit depends on has stopped answering; the last safe setting is held."""

    at_s: float
    sensor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorBack(Event):
    """The sensor answers again."""

    at_s: float
    sensor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUnreachable(Event):
    """Even the lowest setting does not meet the limit: what is left is not ours (idle power, heat from elsewhere)."""

    at_s: float
    limit: str
    measured: float
    allowed: float
    unit: str
