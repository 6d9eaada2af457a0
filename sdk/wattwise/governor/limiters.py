"""Three limits, each turned into the effort that it allows: watts above idle (or their stand-in) at most.

All start from the effort applied now, not from a sum of past errors, so nothing winds up while another limit rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wattwise.governor.sensing import TemperatureTrack

POWER_AIM = 0.985  # of the cap: noise and drift stay under it
POWER_DEADBAND = 0.02  # of the cap
MARGIN_C = 1.8  # the target lies so far under the ceiling
DEADBAND_C = 0.7
URGENT_C = 0.2  # above the ceiling within moments: do not wait for a turn
SLOW_WINDOW_S, SLOW_AHEAD_S = 12.0, 15.0
FAST_WINDOW_S, FAST_AHEAD_S = 2.2, 2.5
SLOPE_NOISE = 0.3  # degrees per second that a sensor with steps of one degree may show without any change
SLOPE_STEADY = 0.03  # degrees per second: slower than that is as good as settled
BLIND_WINDOW_S, BLIND_AHEAD_S = 10.0, 60.0
FULL_RISE_C = 30.0  # assumption: a chip rises so far within seconds at full effort; corrected upwards when seen
GENTLE_START = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """An effort that a limit allows. urgent: do not wait for the usual interval between moves. source: of measured."""

    limit: Literal["power", "temperature", "under-voltage", "battery"]
    effort: float
    measured: float
    allowed: float
    unit: str
    urgent: bool = False
    source: str = ""


def power_bound(cap_w: float, average_w: float, applied: float, source: str) -> Bound:
    """From a settled average: hold inside the deadband, else move by what is missing to just under the cap."""
    error = average_w - POWER_AIM * cap_w
    # Above the cap any excess counts; below it, half a deadband more must be free before something is handed back.
    inside = -1.25 * POWER_DEADBAND * cap_w < error < POWER_DEADBAND * cap_w
    effort = applied if inside else max(0.0, applied - error)
    return Bound(
        limit="power", effort=effort, measured=average_w, allowed=cap_w, unit="W", source=source,
        urgent=average_w > 1.08 * cap_w or average_w < 0.85 * cap_w,
    )  # fmt: skip


class Thermal:
    """Keeps a temperature below its ceiling by looking ahead along its slope, near and far."""

    def __init__(self, ceiling_c: float) -> None:
        self.ceiling_c = ceiling_c
        self.track = TemperatureTrack()
        self._rise_c = FULL_RISE_C

    @property
    def target_c(self) -> float:
        """What is aimed at."""
        return self.ceiling_c - MARGIN_C

    @property
    def last_c(self) -> float:
        """The last temperature that was read; 0 before the first."""
        return self.track.last or 0.0

    def blind(self, now_s: float, applied: float) -> float:
        """Effort to hold without a sensor: less than now if the temperature was still rising when it was lost."""
        line = self.track.line(BLIND_WINDOW_S, now_s)
        if line is None or line[1] <= SLOPE_STEADY:
            return applied
        rise_c = line[1] * BLIND_AHEAD_S
        return applied * min(1.0, max(0.2, (self.target_c - line[0]) / rise_c))

    def start(self, now_s: float, full: float) -> float:
        """Effort to begin with: how far the chip will jump is not known yet."""
        line = self.track.line(FAST_WINDOW_S, now_s)
        if line is None:
            return full
        return full * min(1.0, max(0.1, GENTLE_START * (self.target_c - line[0]) / self._rise_c))

    def bound(self, now_s: float, since_move_s: float, applied: float, full: float) -> Bound | None:
        """The effort that keeps the predicted temperature at the target; None without a temperature."""
        fast = self.track.line(FAST_WINDOW_S, now_s)
        if fast is None:
            return None
        now_c, slope = fast
        near_c = now_c + FAST_AHEAD_S * max(0.0, slope - SLOPE_NOISE)
        # A line that reaches back before the last move would hold its effect against it.
        window = min(SLOW_WINDOW_S, max(FAST_WINDOW_S, since_move_s - 1.0))
        slow = self.track.line(window, now_s) or fast
        trust = window / SLOW_WINDOW_S
        far_c = slow[0] + SLOW_AHEAD_S * trust * (slow[1] if slow[1] > 0 else 0.5 * slow[1])
        ahead_c = max(near_c, far_c)
        room_c = self.target_c - ahead_c
        step = full / self._rise_c
        if room_c > DEADBAND_C:
            effort = applied + 0.5 * room_c * step
        elif room_c < -DEADBAND_C:
            effort = applied + room_c * step
        else:
            effort = applied
        urgent = near_c > self.ceiling_c + URGENT_C
        if urgent:
            effort = min(effort, applied + min(-1.0, self.target_c - near_c) * step)
        return Bound(
            limit="temperature", effort=max(0.0, effort), measured=now_c, allowed=self.ceiling_c, unit="°C",
            urgent=urgent or room_c > 4.0,
        )  # fmt: skip
