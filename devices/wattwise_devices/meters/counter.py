"""A meter whose source counts energy: wrap-around, resets, jumps and standstill are sorted out here.

The source is a function that gives the raw count in joules, or None. What comes out never falls. A count that falls
has wrapped (if its range is known and the power that this would mean is possible) or was reset: then the energy in
between is unknown, none is invented, and the reading is marked stale. Safe to read from several threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from wattwise_devices.meters.contract import Reading, Scope
from wattwise_devices.meters.described import DescribedMeter
from wattwise_devices.meters.source import finite
from wattwise_devices.system import System

POSSIBLE_W = 2000.0  # above this, a step of one counter is a reset or garbage, not consumption
PLAUSIBLE_W = 400.0  # a longer silence than the range lasts at this power may hide a whole turn of the counter
STANDSTILL_S = 2.0


class CounterMeter(DescribedMeter):
    """window_s: power is the mean over about so long. standstill_s: an unmoving count is stale after it."""

    def __init__(
        self,
        name: str,
        scope: Scope,
        system: System,
        count_j: Callable[[], float | None],
        *,
        range_j: float | None = None,
        resolution_j: float | Callable[[], float | None] | None = None,
        rate_hz: float = 1.0,
        estimated: bool = False,
        window_s: float = 0.2,
        standstill_s: float = STANDSTILL_S,
        at_least_j: Callable[[], float | None] | None = None,
    ) -> None:
        self._scope = scope
        self._name, self._system, self._count_j = name, system, count_j
        self._range_j, self._resolution_j, self._rate_hz, self._estimated = range_j, resolution_j, rate_hz, estimated
        self._window_s, self._standstill_s, self._at_least_j = window_s, standstill_s, at_least_j
        self._lock = threading.Lock()
        self._raw_j: float | None = None
        self._energy_j = self._read_s = self._moved_s = 0.0
        self._points: deque[tuple[float, float]] = deque()
        self.read()

    @property
    def resolution_j(self) -> float | None:
        return self._resolution_j() if callable(self._resolution_j) else self._resolution_j

    def read(self) -> Reading | None:
        with self._lock:
            before_s = self._system.clock_s()
            raw_j = finite(self._count_j())
            now_s = (before_s + self._system.clock_s()) / 2  # commands take their time
            if raw_j is None or raw_j < 0 or (self._range_j is not None and raw_j > self._range_j):
                return None
            believed = self._advance(raw_j, now_s)
            stands = now_s - self._moved_s > self._standstill_s
            stale = not believed or stands or self._too_small()
            return Reading(
                source=self._name,
                scope=self._scope,
                time_s=now_s,
                power_w=None if stale else self._power_w(now_s),
                energy_j=self._energy_j,
                estimated=self._estimated,
                stale=stale,
            )

    def _advance(self, raw_j: float, now_s: float) -> bool:
        """Take the count in; False if what happened since the last one cannot be told."""
        last_j, silence_s = self._raw_j, now_s - self._read_s
        self._raw_j, self._read_s = raw_j, now_s
        if last_j is None:
            self._moved_s = now_s
            self._points.append((now_s, 0.0))
            return True
        step_j = raw_j - last_j
        if step_j < 0 and self._range_j is not None:
            step_j += self._range_j
        if not 0 <= step_j <= POSSIBLE_W * (silence_s + 1):
            self._points.clear()
            self._points.append((now_s, self._energy_j))
            self._moved_s = now_s
            return False
        if step_j > 0:
            self._moved_s = now_s
        self._energy_j += step_j
        if not self._points or now_s - self._points[-1][0] >= self._window_s / 4:
            self._points.append((now_s, self._energy_j))
        return self._range_j is None or silence_s <= self._range_j / PLAUSIBLE_W

    def _power_w(self, now_s: float) -> float | None:
        """Mean over at least window_s; None while the meter is younger."""
        while len(self._points) > 1 and self._points[1][0] <= now_s - self._window_s:
            self._points.popleft()
        start_s, start_j = self._points[0]
        span_s, energy_j = now_s - start_s, self._energy_j - start_j
        return energy_j / span_s if span_s >= self._window_s * 0.99 and energy_j > 0 else None

    def _too_small(self) -> bool:
        """A counter that contains another one cannot have counted less."""
        least_j = self._at_least_j() if self._at_least_j is not None else None
        return least_j is not None and least_j > 1.0 and self._energy_j < 0.98 * least_j
