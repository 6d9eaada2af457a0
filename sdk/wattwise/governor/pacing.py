"""Sleeping between steps so that computing takes the share of time that the pace says.

Everything between two rests is computing (the engine's step, choosing a token, its text), except what the reader of the
stream takes: that counts as rest. Sleeps are short, so that another pace, a cancellation or a
stop is noticed at once. Rests are saved up until they are worth it: engines' threads spin on for about a millisecond
after each step that is followed by a rest, and a processor sleeps deeper in longer pauses.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LEAST_REST_S = 0.05
SLICE_S = 0.2
CREDIT_S = 0.25  # rest taken in advance that counts later


class Pacer:
    """Keeps the account of computing and resting. `clock_s` and `sleep` (which says whether to stop) can be given."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._owed_s = self._away_s = 0.0
        self._last_s = clock_s()
        self._started_s: float | None = None
        self._busy_s = 0.0

    def idle(self) -> None:
        """Nothing was computed since the last call of any kind: the time between two replies."""
        now_s = self._clock_s()
        self._rested(now_s - self._last_s)
        self._last_s, self._away_s = now_s, 0.0

    def away(self, seconds: float) -> None:
        """So much of the time since the last step was the reader's."""
        self._away_s += seconds

    def started(self) -> None:
        """A step begins."""
        self._started_s = self._clock_s()

    def ended(self, pace: float) -> float:
        """A step has ended; its seconds. The rest that it asks for is owed from now on."""
        now_s = self._clock_s()
        took_s = now_s - (self._started_s if self._started_s is not None else now_s)
        self._started_s, self._last_s = None, now_s
        self._computed(took_s, pace)
        return took_s

    def busy_s(self) -> float:
        """Seconds of computing so far, what is under way included."""
        started_s = self._started_s  # another thread may end it between two looks
        return self._busy_s + (self._clock_s() - started_s if started_s is not None else 0.0)

    def rest(self, pace: Callable[[], float], sleep: Callable[[float], bool]) -> None:
        """Sleep what is owed. pace: asked again after every slice; at 1.0 nothing is owed any more.

        sleep waits for so many seconds, or less; it answers whether to stop at once.
        """
        now_s = self._clock_s()
        away_s, self._away_s = self._away_s, 0.0
        self._computed(max(0.0, now_s - self._last_s - away_s), pace())
        self._rested(away_s)
        self._last_s = now_s
        while True:
            if pace() >= 1.0:
                self._owed_s = min(self._owed_s, 0.0)
            if self._owed_s < LEAST_REST_S:
                return
            stop = sleep(min(self._owed_s, SLICE_S))
            now_s = self._clock_s()
            self._rested(now_s - self._last_s)
            self._last_s = now_s
            if stop:
                return

    def _computed(self, seconds: float, pace: float) -> None:
        self._busy_s += seconds
        self._owed_s += seconds * (1 / pace - 1)

    def _rested(self, seconds: float) -> None:
        self._owed_s = max(-CREDIT_S, self._owed_s - seconds)
