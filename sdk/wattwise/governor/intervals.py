"""How often the governor may move: quickly while it learns or where a limit is broken, then twice in ten seconds."""

from __future__ import annotations

from collections import deque

QUICK_S = 1.2  # between moves while settling in, or when it is urgent
CALM_S = 5.0
MOVES, WINDOW_S = 2, 10.0
SETTLING_S = 15.0  # after a start, another limit or another sensor


class Intervals:
    """Remembers moves; says whether another one may follow now."""

    def __init__(self) -> None:
        self._moves: deque[float] = deque()
        self._settling_until_s = 0.0

    def settle(self, now_s: float) -> None:
        """Something is new: learn quickly for a while."""
        self._settling_until_s = now_s + SETTLING_S

    def settling(self, now_s: float) -> bool:
        """Whether it is still new."""
        return now_s < self._settling_until_s

    def moved(self, now_s: float, count: int) -> None:
        """So many controls were moved now."""
        self._moves.extend([now_s] * count)

    def allows(self, now_s: float, *, urgent: bool, count: int = 1) -> bool:
        """Whether so many more may be moved now."""
        while self._moves and self._moves[0] <= now_s - WINDOW_S:
            self._moves.popleft()
        since = now_s - self._moves[-1] if self._moves else float("inf")
        if urgent or self.settling(now_s):
            return since >= QUICK_S
        return since >= CALM_S and len(self._moves) + count <= MOVES
