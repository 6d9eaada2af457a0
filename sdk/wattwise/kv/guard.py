"""The quality guard: does the model still say the same after rows were dropped?

Around an eviction the last tokens are read once more, before it from all rows held and after it from what was kept, and
their likeliest successors are compared. The rows are put back as they were, so a guarded reply is the same reply. One
eviction in `EVERY` is looked at; each look costs `2 x TAIL` tokens.

Only this eviction is judged: what earlier ones lost is gone for both readings. So agreement is an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattwise_devices.errors import PlanError
from wattwise_runtimes.contracts import Batch, Engine

TAIL, EVERY = 16, 4
_WIDEN = "widen"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """least: share of equal first choices; a look below it counts as bad. widens: whether, beside the warning, the KV
    budget then grows into its block: rows are evicted more often, and fewer at a time."""

    least: float
    widens: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"least": self.least, "widens": self.widens}

    def __str__(self) -> str:
        return f"{self.least:g}" + (f":{_WIDEN}" if self.widens else "")


def parse_guard(text: str) -> GuardSettings:
    """From "0.9", "90%" or "0.9:widen". Raises PlanError."""
    share, _, action = str(text).strip().partition(":")
    try:
        least = float(share[:-1]) / 100 if share.endswith("%") else float(share)
    except ValueError:
        least = -1.0
    if not 0 < least <= 1 or action not in ("", _WIDEN):
        raise PlanError(f"{text!r} is no KV guard; write a share such as 0.9 or 90%, or 0.9:{_WIDEN}")
    return GuardSettings(least=least, widens=action == _WIDEN)


class QualityGuard:
    """Looks at every `EVERY`-th eviction of one engine. `agreement` is the mean of all looks, None before the first."""

    def __init__(self, engine: Engine, settings: GuardSettings) -> None:
        if not engine.capabilities.export:
            raise PlanError(
                "the KV guard needs an engine that can export rows, to put them back",
                clash=("KV guard", "engine without export"),
            )
        self.settings = settings
        self._engine = engine
        self._evictions = 0
        self._looks: list[float] = []
        self._before: np.ndarray | None = None

    @property
    def agreement(self) -> float | None:
        """Mean share of equal first choices."""
        return float(np.mean(self._looks)) if self._looks else None

    def before(self, tail: Sequence[int]) -> None:
        """An eviction is coming; tail: the ids of the last rows, which it will not touch."""
        is_due = self._evictions % EVERY == 0 and len(tail) > 0
        self._evictions += 1
        self._before = self._first_choices(tail) if is_due else None

    def after(self, tail: Sequence[int]) -> float | None:
        """The eviction is done: the share of equal first choices, or None where this one was not looked at."""
        before, self._before = self._before, None
        if before is None:
            return None
        found = float(np.mean(before == self._first_choices(tail)))
        self._looks.append(found)
        return found

    def _first_choices(self, tail: Sequence[int]) -> np.ndarray:
        """Likeliest successor of each of the last rows, read again from the rows before them; int64 [tail]."""
        kv = self._engine.kv
        start = int(kv.positions[-len(tail)])
        if kv.view().head_positions is None:
            rows = kv.export(start)
        else:
            rows = kv.export()
        kv.truncate(start)
        choices = self._engine.forward(Batch(tail, logits="all")).argmax(axis=1)
        if kv.view().head_positions is None:
            kv.truncate(start)
        else:
            kv.clear()
        kv.restore(rows)
        return choices
