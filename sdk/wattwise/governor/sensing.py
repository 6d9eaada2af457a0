"""What the governor knows of watts, degrees and duty: short histories with the questions that it asks of them.

Averages begin only after a sensor has had time to follow the last move, so a lagging battery gauge is not mistaken
for a machine that does not react. No clock of its own: every call brings the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from wattwise_devices.meters.contract import Reading

KEPT_S = 20.0
LEAST_IDLE_S = 1.0
LOST_AFTER_S = 1.5  # a sensor that has not answered for so long is reported and no longer acted upon


@dataclass(frozen=True, slots=True)
class Follow:
    """How a kind of power source follows the truth. settle_s: after a move, until its values speak of the new load.

    span_s: the least time to average over. repeat_s: a value unchanged for so long counts as a new one.
    """

    settle_s: float
    span_s: float
    repeat_s: float


# Fuel gauges average inside and are read out every second or two (an assumption; gauges do not say). Rail
# monitors and counters follow within a fraction of a second.
BATTERY = Follow(settle_s=2.2, span_s=0.0, repeat_s=2.5)
SAMPLES = Follow(settle_s=0.4, span_s=0.9, repeat_s=0.6)
COUNTER = Follow(settle_s=0.3, span_s=0.9, repeat_s=0.6)


def usable(reading: Reading | None) -> TypeGuard[Reading]:
    """Whether there is a figure in it that is not old."""
    return reading is not None and not reading.stale and (reading.power_w is not None or reading.energy_j is not None)


class PowerTrack:
    """One power source at a time: the best that answers, kept while it does. rates_hz: new values, by source."""

    def __init__(self, rates_hz: Mapping[str, float] | None = None) -> None:
        self.source: str | None = None
        self.follow = COUNTER
        self._rates_hz = dict(rates_hz or {})
        self._points: deque[tuple[float, float]] = deque()  # time and, by kind, joules so far or watts
        self._counts = self._estimated = False
        self._last_s: float | None = None
        self._fresh: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """The source, and whether it is only an estimate."""
        return f"{self.source}, estimated" if self._estimated else self.source or ""

    def add(self, now_s: float, readings: Sequence[Reading]) -> bool:
        """Take in one round of readings, best source first. True if the source was changed."""
        answers = [r for r in readings if usable(r)]
        mine = next((r for r in answers if r.source == self.source), None)
        changed = False
        if mine is None and answers and (self.source is None or self.lost(now_s)):
            mine, changed = answers[0], self.source is not None
            self._begin(mine)
        if mine is not None:
            self._last_s = now_s
            self._keep(now_s, mine)
        return changed

    def lost(self, now_s: float) -> bool:
        """Whether the source has been silent for too long, or there never was one."""
        return self._last_s is None or now_s - self._last_s > LOST_AFTER_S

    def average(self, since_s: float, now_s: float, at_most_s: float) -> float | None:
        """Mean watts of the load since a move, over at most so many seconds; None while it is too early to say."""
        start = max(since_s + self.follow.settle_s, now_s - at_most_s)
        points = [p for p in self._points if p[0] >= start]
        if not points or (len(points) < 2 and self._counts):
            return None
        span = points[-1][0] - points[0][0]
        if span < self.follow.span_s:
            return None
        if self._counts:
            return (points[-1][1] - points[0][1]) / span
        return sum(watts for _, watts in points) / len(points)

    def idle(self, since_s: float, now_s: float) -> float | None:
        """Mean watts of an idle time that began then: a counter needs only its two ends."""
        points = [p for p in self._points if p[0] >= since_s]
        if self._counts and len(points) > 1 and points[-1][0] - points[0][0] >= LEAST_IDLE_S:
            return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
        return None if self._counts else self.average(since_s, now_s, KEPT_S)

    def forget(self) -> None:
        """Drop the history (a gap or a new source would falsify averages)."""
        self._points.clear()
        self._fresh = None

    def _begin(self, reading: Reading) -> None:
        self.source, self._estimated = reading.source, reading.estimated
        self._counts = reading.energy_j is not None and (reading.scope != "battery" or reading.power_w is None)
        self.follow = BATTERY if reading.scope == "battery" else COUNTER if self._counts else SAMPLES
        slowest_s = 1.1 / self._rates_hz.get(reading.source, float("inf"))
        if slowest_s > self.follow.settle_s:  # it averages over longer than its kind usually does
            self.follow = Follow(settle_s=slowest_s, span_s=self.follow.span_s, repeat_s=slowest_s)
        self.forget()

    def _keep(self, now_s: float, reading: Reading) -> None:
        value = reading.energy_j if self._counts else reading.power_w
        if value is None:
            return
        if self._counts:
            if self._points and value < self._points[-1][1]:
                self.forget()  # a counter that fell was replaced
            self._points.append((now_s, value))
        elif self._fresh is None or value != self._fresh[1] or now_s - self._fresh[0] >= self.follow.repeat_s:
            self._fresh = (now_s, value)
            self._points.append((now_s, value))
        _trim(self._points, now_s)


class TemperatureTrack:
    """The temperature's line through the last seconds."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()
        self._last_s: float | None = None

    def add(self, now_s: float, celsius: float | None) -> None:
        """Take in one value, None if the sensor did not answer."""
        if celsius is None:
            return
        if self.lost(now_s):
            self._points.clear()
        self._last_s = now_s
        self._points.append((now_s, celsius))
        _trim(self._points, now_s)

    def lost(self, now_s: float) -> bool:
        """Whether the sensor has been silent for too long, or there never was one."""
        return self._last_s is None or now_s - self._last_s > LOST_AFTER_S

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self._points[-1][1] if self._points else None

    def line(self, window_s: float, now_s: float) -> tuple[float, float] | None:
        """Value now and slope per second of the least-squares line over the window; None without three points."""
        points = [p for p in self._points if p[0] >= now_s - window_s]
        if len(points) < 3:  # too few for a slope
            return (points[-1][1], 0.0) if points else None
        times = np.array([p[0] - now_s for p in points])
        values = np.array([p[1] for p in points])
        times_mean, values_mean = times.mean(), values.mean()
        spread = float(((times - times_mean) ** 2).sum())
        slope = float(((times - times_mean) * (values - values_mean)).sum()) / spread if spread > 0 else 0.0
        return float(values_mean - slope * times_mean), slope


class DutyTrack:
    """The share of time that the program really computed: the reader of a stream may be slower than the pace."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()

    def add(self, now_s: float, busy_s: float) -> None:
        """Take in the computing time so far."""
        self._points.append((now_s, busy_s))
        _trim(self._points, now_s)

    def share(self, since_s: float, now_s: float, at_most_s: float) -> float | None:
        """Over the same span as a power average."""
        start = max(since_s, now_s - at_most_s)
        points = [p for p in self._points if p[0] >= start]
        if len(points) < 2 or points[-1][0] <= points[0][0]:
            return None
        return min(1.0, (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0]))


def _trim(points: deque[tuple[float, float]], now_s: float) -> None:
    while len(points) > 2 and points[0][0] < now_s - KEPT_S:
        points.popleft()
