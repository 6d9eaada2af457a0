"""What each setting costs and brings, learned while running: tokens per computing second, watts above idle.

Watts follow `idle + duty x (a + b x threads)`, fitted by least squares with a weak prior to what was measured, and
corrected per setting where that setting itself was measured. Untried settings get their speed from the plan's
rates, else from a common shape: it stops growing at two to three threads, where small devices run out of bandwidth.
Without a power meter the same model in units of one thread's power serves, since only ratios are needed then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wattwise.governor.controls import Setting

_KNEE_THREADS = 2.5  # assumption for decode, replaced by measurements as they come
_BASE_IN_THREADS = 1.2  # a / b before anything was measured: uncore and memory cost about one thread's power
_IDLE_SHARE = 0.35  # of the first measured power, before the idle power was measured
_TOKENS_FOR_TRUST = 3.0
_THRIFT = 0.25  # one percent of speed is given for four percent of power
_FORGET = 0.75  # weight that a speed keeps when as many tokens again have been seen


@dataclass(slots=True)
class _Speed:
    tokens: float = 0.0
    seconds: float = 0.0


class Speeds:
    """Tokens per computing second by setting; measured where possible, else scaled from what was measured."""

    def __init__(self, settings: tuple[Setting, ...], rates: dict[Setting, float], *, saturating: bool) -> None:
        self._settings, self._rates, self._saturating = settings, rates, saturating
        self._measured: dict[Setting, _Speed] = {}

    def add(self, setting: Setting, tokens: float, seconds: float) -> None:
        """Some tokens made in this setting alone."""
        if tokens <= 0 or seconds <= 0:
            return
        speed = self._measured.setdefault(setting, _Speed())
        keep = _FORGET if speed.tokens > 8 * _TOKENS_FOR_TRUST else 1.0
        speed.tokens, speed.seconds = keep * speed.tokens + tokens, keep * speed.seconds + seconds

    def tried(self, setting: Setting) -> bool:
        """Whether it was measured well enough to be compared."""
        speed = self._measured.get(setting)
        return speed is not None and speed.tokens >= _TOKENS_FOR_TRUST

    def known(self, setting: Setting) -> bool:
        """Whether the plan knows it."""
        return setting in self._rates

    def forget_others(self, setting: Setting) -> None:
        """The machine has changed (another clock): what was measured elsewhere no longer compares."""
        self._measured = {s: v for s, v in self._measured.items() if s == setting}

    def rate(self, setting: Setting) -> float:
        """Tokens per second, in arbitrary units before anything was measured."""
        if self.tried(setting):
            return self._of(setting)
        nearest = min(
            (s for s in self._measured if self.tried(s)),
            key=lambda s: (s.device != setting.device, abs(s.threads - setting.threads)),
            default=None,
        )
        if nearest is None:
            return self._shape(setting)
        return self._of(nearest) * self._shape(setting) / self._shape(nearest)

    def _of(self, setting: Setting) -> float:
        speed = self._measured[setting]
        return speed.tokens / speed.seconds

    def _shape(self, setting: Setting) -> float:
        if all(s in self._rates for s in self._settings):
            return self._rates[setting]
        if not self._saturating:
            return float(setting.threads)
        return (setting.threads**-3.0 + _KNEE_THREADS**-3.0) ** (-1 / 3)


class Watts:
    """Power above idle by setting at full duty. Units of watts once measured, of one thread's power before.

    known: what the plan knows of them; scaled to what was measured.
    """

    def __init__(self, known: Mapping[Setting, float] | None = None) -> None:
        self.known = dict(known or {})
        self.idle_w: float | None = None  # measured while nothing was computed
        self.measured = False
        self._rows: dict[tuple[Setting, int], tuple[float, float]] = {}  # (setting, coarse duty) -> duty, watts
        self._latest: dict[Setting, tuple[float, float]] = {}
        self._fit = (0.0, _BASE_IN_THREADS, 1.0)

    @property
    def idle(self) -> float:
        """Measured, else fitted."""
        return self.idle_w if self.idle_w is not None else self._fit[0]

    def add(self, setting: Setting, duty: float, watts: float) -> None:
        """A settled average of this setting at this duty."""
        if duty < 0.01:
            return
        self._rows[setting, round(10 * duty)] = self._latest[setting] = (duty, watts)
        self.measured = True
        self._fit = self._solve(watts, setting, duty)

    def active(self, setting: Setting) -> float:
        """Watts above idle at full duty: measured, else the plan's figure at the measured scale, else the fit's."""
        if setting in self._latest:
            return self._own(setting)
        measured = next((s for s in reversed(self._latest) if s in self.known), None)
        if setting in self.known and measured is not None:
            return self._own(measured) * self.known[setting] / self.known[measured]
        if setting in self.known and not self._latest:
            return self.known[setting]
        return self._fitted(setting)

    def _own(self, setting: Setting) -> float:
        duty, watts = self._latest[setting]
        # Never far below what the fit says: the idle power that was measured may have been another program's.
        return max((watts - self.idle) / duty, 0.3 * self._fitted(setting))

    def _fitted(self, setting: Setting) -> float:
        return max(self._fit[1] + self._fit[2] * setting.threads, 1e-3)

    def _solve(self, latest_w: float, setting: Setting, duty: float) -> tuple[float, float, float]:
        """Least squares for (idle, a, b), each row weighted by how well it is known."""
        idle_guess = self.idle_w if self.idle_w is not None else _IDLE_SHARE * latest_w
        idle_sigma = (0.02 if self.idle_w is not None else 0.25) * latest_w
        scale = max(latest_w - idle_guess, 0.1 * latest_w) / (duty * (_BASE_IN_THREADS + setting.threads))
        rows = [(1.0, d, d * s.threads, watts, 0.02 * latest_w) for (s, _), (d, watts) in self._rows.items()]
        rows += [
            (1.0, 0.0, 0.0, idle_guess, idle_sigma),
            (0.0, 1.0, 0.0, _BASE_IN_THREADS * scale, _BASE_IN_THREADS * scale),
            (0.0, 0.0, 1.0, scale, 0.5 * scale),
        ]
        table = np.array(rows)
        weights = 1.0 / np.maximum(table[:, 4], 1e-9)
        solution, *_ = np.linalg.lstsq(table[:, :3] * weights[:, None], table[:, 3] * weights, rcond=None)
        idle, base, per_thread = (float(x) for x in solution)
        return max(idle, 0.0), max(base, 0.0), max(per_thread, 1e-3)


def best_setting(
    settings: tuple[Setting, ...], effort: float, speeds: Speeds, watts: Watts, current: Setting, gain: float
) -> Setting:
    """The setting that makes the most tokens from this power above idle, a little speed given for less power.

    gain: a ratio above one; another setting must be better by that much than the current one.
    """
    full = watts.active(settings[0])
    if effort >= full:  # nothing is limited: the plan's own choice
        return settings[0]
    idle = watts.idle if watts.measured else 0.5 * full

    def score(setting: Setting) -> float:
        active = watts.active(setting)
        tokens = speeds.rate(setting) * min(1.0, effort / active)
        return tokens / (idle + min(effort, active)) ** _THRIFT

    def foretold(setting: Setting) -> bool:
        same_kind = (setting.draft_depth, setting.device) == (current.draft_depth, current.device)
        return same_kind or speeds.tried(setting) or (speeds.known(setting) and setting in watts.known)

    here = score(current) if current in settings else 0.0
    best = max((s for s in settings if foretold(s)), key=score, default=current)
    return best if score(best) > gain * here else current
