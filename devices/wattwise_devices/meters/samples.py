"""A meter whose source gives watts: the function is asked, the clock is read, standstill is noticed.

Not here: integration (energy.py). Safe to read from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from wattwise_devices.meters.contract import Reading, Scope
from wattwise_devices.meters.described import DescribedMeter
from wattwise_devices.meters.source import finite
from wattwise_devices.system import System

_POSSIBLE_W = 10_000.0


class SampleMeter(DescribedMeter):
    """standstill_s: a value that has not changed for longer is stale; None where a steady value is normal."""

    def __init__(
        self,
        name: str,
        scope: Scope,
        system: System,
        watts: Callable[[], float | None],
        *,
        rate_hz: float,
        standstill_s: float | None = None,
        estimated: bool = False,
    ) -> None:
        self._scope = scope
        self._name, self._system, self._watts = name, system, watts
        self._rate_hz, self._standstill_s, self._estimated = rate_hz, standstill_s, estimated
        self._lock = threading.Lock()
        self._last_w: float | None = None
        self._moved_s = self._looked_s = system.clock_s()

    def read(self) -> Reading | None:
        with self._lock:
            before_s = self._system.clock_s()
            watts = finite(self._watts())
            now_s = (before_s + self._system.clock_s()) / 2  # commands take their time
            if watts is None or not 0 < watts < _POSSIBLE_W:
                self._last_w = None
                return None
            # Nobody looked for a while: that the value is the same again does not mean that it stood still.
            unwatched = self._standstill_s is not None and now_s - self._looked_s > self._standstill_s
            if watts != self._last_w or unwatched:
                self._last_w, self._moved_s = watts, now_s
            self._looked_s = now_s
            stale = self._standstill_s is not None and now_s - self._moved_s > self._standstill_s
            return Reading(
                source=self._name,
                scope=self._scope,
                time_s=now_s,
                power_w=watts,
                estimated=self._estimated,
                stale=stale,
            )
