"""Joules from a meter's readings: gross, net of idle, by phase, each with an interval and what was missed.

Where both readings around a stretch of time count energy, their difference is taken; else power is integrated by the
trapezoid rule. Silence and stale readings longer than a limit are gaps: counted, never filled in. No thread and no
timer here: somebody calls `sample` (meters/sampler.py does). Intervals are meant to hold in about 95 of 100 cases:

- counter: at either end one step of the count and what flows between two of its updates;
- samples: sqrt(2.4 sum (dp dt)^2), 2.2 standard deviations for white noise and more than the worst case of a single
  step; and, because a meter's value may be one update old, the range of power seen times one update;
- estimates: ESTIMATED_SHARE of the energy on top (assumption). The instrument's own accuracy is not included.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from wattwise_devices.errors import PlanError
from wattwise_devices.meters.contract import Meter, Reading, Scope

ESTIMATED_SHARE = 0.3
LEAST_UPDATES = 20  # a phase with fewer new values than this is called short
_SNAP_S = 0.05
Method = Literal["counter", "samples", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Power before the work began. error_w: half of the interval."""

    power_w: float
    error_w: float
    seconds: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Of one phase or of all. seconds: by the clock; covered_s: of it with energy known; gap_s: without.

    gross_j belongs to covered_s. Numbers are None if nothing was measured. missed, stale: readings not to be used.
    short: too few values of the meter fell into it to say much.
    """

    source: str
    scope: Scope
    method: Method | None
    estimated: bool
    seconds: float
    covered_s: float
    gross_j: float | None
    error_j: float | None
    idle_w: float | None
    net_j: float | None
    net_error_j: float | None
    gaps: int
    gap_s: float
    samples: int
    missed: int
    stale: int
    short: bool

    @property
    def mean_w(self) -> float | None:
        """Gross, over what is covered."""
        return self.gross_j / self.covered_s if self.gross_j is not None and self.covered_s > 0 else None

    @property
    def interval_j(self) -> tuple[float, float] | None:
        """Lowest and highest believable gross energy."""
        if self.gross_j is None or self.error_j is None:
            return None
        return max(0.0, self.gross_j - self.error_j), self.gross_j + self.error_j

    def to_json(self) -> dict[str, Any]:
        """Plain data under the names of the fields."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**data, "mean_w": self.mean_w, "interval_j": self.interval_j}


@dataclass(slots=True)
class _Tally:
    """Sums of one phase while it runs."""

    covered_s: float = 0.0
    joules: float = 0.0
    squares: float = 0.0  # sum of (dp dt)^2
    split_j: float = 0.0  # of steps of a counter that reach over the phase's ends
    counted_s: float = 0.0
    highest_w: float = 0.0
    gaps: int = 0
    gap_s: float = 0.0
    samples: int = 0
    missed: int = 0
    stale: int = 0
    seconds: float = 0.0
    visits: int = 0


class EnergyIntegrator:
    """Feed it by `sample` or `add`; `mark` begins a phase (the same name may come again); `stop` ends the last.

    max_gap_s: the longest time between two samples of power that is bridged.
    """

    def __init__(
        self,
        meter: Meter,
        baseline: Baseline | None = None,
        *,
        max_gap_s: float | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if baseline is not None and baseline.source != meter.name:
            raise PlanError(
                f"the idle power was measured by {baseline.source}, the energy by {meter.name}: their difference means "
                "nothing. Measure idle with the same meter.",
                clash=(baseline.source, meter.name),
            )
        self.meter, self.baseline = meter, baseline
        self._max_gap_s = max_gap_s if max_gap_s is not None else max(2.5, 3.0 / meter.rate_hz)
        self._clock_s = clock_s
        self._lock = threading.RLock()
        self._last: Reading | None = None
        self._doubt = False  # a stale reading came after the last good one
        self._phase: str | None = None
        self._clock_phase: str | None = None
        self._phase_since_s = 0.0
        self._ahead: list[tuple[float, str | None]] = []  # phase changes later than the last good reading
        self._tallies: dict[str, _Tally] = {}
        self._total = _Tally()
        idle = (baseline.power_w, baseline.power_w) if baseline else (math.inf, -math.inf)
        self._low_w, self._high_w = idle

    def sample(self) -> Reading | None:
        """Read the meter and take it in."""
        reading = self.meter.read()
        self.add(reading)
        return reading

    def mark(self, phase: str | None) -> None:
        """From now on energy belongs to this phase; None: to none (it still counts in the total)."""
        reading = self.sample()
        with self._lock:
            now_s = self._clock_s()
            if reading is not None and not reading.stale and abs(now_s - reading.time_s) < _SNAP_S:
                now_s = reading.time_s  # the boundary and the reading are one instant
            self._close_phase(now_s)
            self._clock_phase, self._phase_since_s = phase, now_s
            if phase is not None:
                self._tallies.setdefault(phase, _Tally()).visits += 1
            self._ahead.append((now_s, phase))
            self._enter_phases(self._last.time_s if self._last is not None else -math.inf)

    def stop(self) -> None:
        """End the last phase."""
        self.mark(None)

    def add(self, reading: Reading | None) -> None:
        """Take in one reading of this meter."""
        with self._lock:
            touched = [self._total, *self._current()]
            if reading is None:
                for tally in touched:
                    tally.missed += 1
                return
            if reading.stale:
                self._doubt = True
                for tally in touched:
                    tally.stale += 1
                return
            if reading.power_w is None and reading.energy_j is None:
                for tally in touched:
                    tally.missed += 1
                return
            self._see(reading)
            last, doubt = self._last, self._doubt
            if last is None:
                self._last, self._doubt = reading, False
                self._enter_phases(reading.time_s)
                return
            if reading.time_s <= last.time_s:
                return
            for tally in touched:
                tally.samples += 1
            self._take(self._total, last, reading, doubt, 0.0, 1.0)
            self._by_phase(last, reading, doubt)
            self._last, self._doubt = reading, False

    def total(self) -> Energy:
        """From the first reading to the last."""
        with self._lock:
            tally = self._total
            tally.seconds, tally.visits = tally.covered_s + tally.gap_s, 1
            return self._energy(tally)

    def phases(self) -> dict[str, Energy]:
        """By name, in the order of their first beginning; the one under way up to its last reading."""
        with self._lock:
            return {name: self._energy(tally) for name, tally in self._tallies.items()}

    def _current(self) -> list[_Tally]:
        return [self._tallies[self._clock_phase]] if self._clock_phase is not None else []

    def _close_phase(self, now_s: float) -> None:
        for tally in self._current():
            tally.seconds += now_s - self._phase_since_s

    def _see(self, reading: Reading) -> None:
        if reading.power_w is not None:
            self._low_w, self._high_w = min(self._low_w, reading.power_w), max(self._high_w, reading.power_w)

    def _enter_phases(self, until_s: float) -> None:
        while self._ahead and self._ahead[0][0] <= until_s:
            self._phase = self._ahead.pop(0)[1]

    def _by_phase(self, last: Reading, reading: Reading, doubt: bool) -> None:
        """Give the stretch between two readings to the phases that it covers."""
        span_s, start = reading.time_s - last.time_s, 0.0
        self._enter_phases(last.time_s)
        while True:
            inside = bool(self._ahead) and self._ahead[0][0] < reading.time_s
            end = (self._ahead[0][0] - last.time_s) / span_s if inside else 1.0
            if self._phase is not None and end > start:
                self._take(self._tallies[self._phase], last, reading, doubt, start, end)
            if not inside:
                break
            self._phase, start = self._ahead.pop(0)[1], end
        self._enter_phases(reading.time_s)

    def _take(self, tally: _Tally, a: Reading, b: Reading, doubt: bool, start: float, end: float) -> None:
        """Add the part from start to end (shares) of the stretch between two readings."""
        whole_s = b.time_s - a.time_s
        part_s = (end - start) * whole_s
        if not doubt and a.energy_j is not None and b.energy_j is not None and b.energy_j >= a.energy_j:
            joules = b.energy_j - a.energy_j
            tally.joules += joules * (end - start)
            tally.split_j += 0.0 if (start, end) == (0.0, 1.0) else joules
            tally.counted_s += part_s
            tally.highest_w = max(tally.highest_w, joules / whole_s)
        elif not doubt and a.power_w is not None and b.power_w is not None and whole_s <= self._max_gap_s:
            rise_w = b.power_w - a.power_w
            tally.joules += part_s * (a.power_w + rise_w * (start + end) / 2)
            tally.squares += (rise_w * whole_s) ** 2
        else:
            tally.gaps += 1
            tally.gap_s += part_s
            return
        tally.covered_s += part_s

    def _energy(self, tally: _Tally) -> Energy:
        gross_j = error_j = net_j = net_error_j = None
        method: Method | None = None
        if tally.covered_s > 0:
            sampled = tally.covered_s - tally.counted_s > 1e-9 * tally.covered_s
            method = "samples" if tally.counted_s == 0 else "mixed" if sampled else "counter"
            gross_j, error_j = tally.joules, self._error_j(tally, method)
            if self.baseline is not None:
                net_j = gross_j - self.baseline.power_w * tally.covered_s
                net_error_j = math.hypot(error_j, self.baseline.error_w * tally.covered_s)
        return Energy(
            source=self.meter.name,
            scope=self.meter.scope,
            method=method,
            estimated=self.meter.estimated,
            seconds=tally.seconds if tally.seconds > 0 else tally.covered_s + tally.gap_s,
            covered_s=tally.covered_s,
            gross_j=gross_j,
            error_j=error_j,
            idle_w=self.baseline.power_w if self.baseline is not None else None,
            net_j=net_j,
            net_error_j=net_error_j,
            gaps=tally.gaps,
            gap_s=tally.gap_s,
            samples=tally.samples,
            missed=tally.missed,
            stale=tally.stale,
            short=tally.covered_s * self.meter.rate_hz < LEAST_UPDATES,
        )

    def _error_j(self, tally: _Tally, method: Method) -> float:
        update_s, visits = 1.0 / self.meter.rate_hz, max(1, tally.visits)
        error_j = tally.split_j + math.sqrt(2.4 * tally.squares)
        if method != "samples":
            error_j += 2 * visits * ((self.meter.resolution_j or 0.0) + tally.highest_w * update_s)
        if method != "counter" and self._high_w > self._low_w:
            error_j += visits * min(update_s, tally.covered_s) * (self._high_w - self._low_w)
        return error_j + (ESTIMATED_SHARE * tally.joules if self.meter.estimated else 0.0)


def measure_idle(
    meter: Meter,
    seconds: float = 3.0,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock_s: Callable[[], float] = time.monotonic,
) -> Baseline | None:
    """The machine's power while the caller does nothing; None if the meter says nothing in that time."""
    integrator = EnergyIntegrator(meter, clock_s=clock_s)
    step_s = max(0.05, min(0.2, seconds / 10))
    integrator.sample()
    end_s = clock_s() + seconds
    while clock_s() < end_s:
        sleep(min(step_s, max(0.001, end_s - clock_s())))
        integrator.sample()
    energy = integrator.total()
    if energy.gross_j is None or energy.error_j is None or energy.covered_s < seconds / 2:
        return None
    return Baseline(
        power_w=energy.gross_j / energy.covered_s,
        error_w=energy.error_j / energy.covered_s,
        seconds=energy.covered_s,
        source=meter.name,
    )
