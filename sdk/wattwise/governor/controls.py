"""What the governor may move, within what, and the words it uses for it. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from wattwise.events import Event
from wattwise_devices.errors import PlanError

Phase = Literal["idle", "prefill", "decode"]
MIN_PACE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A step that cannot be divided: threads, draft depth and device together."""

    threads: int
    draft_depth: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """What the program does now. pace: share of time computing, above 0, at most 1."""

    threads: int
    threads_batch: int
    pace: float = 1.0
    draft_depth: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSpace:
    """The settings of each phase that may be used; the first is the plan's choice, never exceeded in speed.

    rates, active_w: tokens per second and watts above idle of decode settings where the plan knows them; only ratios
    matter. Draft depths and devices are weighed up only with both: nothing in a thread count foretells them.
    """

    decode: tuple[Setting, ...]
    prefill: tuple[Setting, ...]
    min_pace: float = MIN_PACE
    rates: dict[Setting, float] = field(default_factory=dict)
    active_w: dict[Setting, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.decode or not self.prefill:
            raise PlanError("a governor needs at least one setting for each phase")
        if not 0 < self.min_pace <= 1:
            raise PlanError(f"min_pace must be above 0 and at most 1, not {self.min_pace}")

    @classmethod
    def of_threads(
        cls, threads: int, threads_batch: int, *, adjustable: bool, rates: dict[int, float] | None = None
    ) -> ControlSpace:
        """Thread counts from the plan's down to one, where the engine can change them after loading."""
        decode = range(threads, 0, -1) if adjustable else (threads,)
        prefill = range(threads_batch, 0, -1) if adjustable else (threads_batch,)
        return cls(
            decode=tuple(Setting(threads=n) for n in decode),
            prefill=tuple(Setting(threads=n) for n in prefill),
            rates={Setting(threads=n): rate for n, rate in (rates or {}).items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What to keep to. None: no such limit. on_floor: what happens under the battery floor."""

    power_w: float | None = None
    temperature_c: float | None = None
    battery_floor_percent: float | None = None
    on_floor: Literal["stop", "pace"] = "stop"

    @property
    def any(self) -> bool:
        """Whether there is something to govern."""
        return (self.power_w, self.temperature_c, self.battery_floor_percent) != (None, None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How far the program has come, counted from its start and never falling.

    tokens, computed_s: finished ones of this phase and the time they took to compute. busy_s: computing time of all
    phases, what is under way included.
    """

    phase: Phase
    tokens: float = 0.0
    computed_s: float = 0.0
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One thing the governor did or noticed. control None: noticed only, nothing was moved."""

    event: Event
    control: str | None = None
    before: float | str | None = None
    after: float | str | None = None
