"""Sleeping between steps so that computing takes the share of time that the pace says.

Time that the reader of a stream takes counts as rest. Sleeps are short, so that another pace, a cancellation or a
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
        self._owed_s = 0.0
        self._last_s = clock_s()
        self._started_s: float | None = None
        self._busy_s = 0.0

    def started(self) -> None:
        """Computing begins."""
        self._started_s = self._clock_s()

    def ended(self, pace: float) -> float:
        """Computing has ended; its seconds. The rest that it asks for is owed from now on."""
        now_s = self._clock_s()
        took_s = now_s - (self._started_s if self._started_s is not None else now_s)
        self._started_s, self._last_s = None, now_s
        self._busy_s += took_s
        self._owed_s += took_s * (1 / pace - 1)
        return took_s

    def busy_s(self) -> float:
        """Seconds of computing so far, what is under way included."""
        started_s = self._started_s  # another thread may end it between two looks
        return self._busy_s + (self._clock_s() - started_s if started_s is not None else 0.0)

    def rest(self, pace: Callable[[], float], sleep: Callable[[float], bool]) -> None:
        """Sleep what is owed. pace: asked again after every slice; at 1.0 nothing is owed any more.

        sleep waits for so many seconds, or less; it answers whether to stop at once.
        """
        while True:
            now_s = self._clock_s()
            self._owed_s = max(-CREDIT_S, self._owed_s - (now_s - self._last_s))
            self._last_s = now_s
            if pace() >= 1.0:
                self._owed_s = min(self._owed_s, 0.0)
            if self._owed_s < LEAST_REST_S or sleep(min(self._owed_s, SLICE_S)):
                return
