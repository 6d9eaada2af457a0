"""Meters made of formulas: power of time, or a counter of its integral with steps and a refresh rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from wattwise_devices.meters import Reading, Scope

Formula = Callable[[float], float]


@dataclass
class FormulaMeter:
    """watts or joules, of seconds since 0; values refresh rate_hz times a second and are held in between.

    silent, stale: spans of time without an answer, or with a stale one. noise: added to every power.
    """

    watts: Formula | None = None
    joules: Formula | None = None
    rate_hz: float = 1e6
    step_j: float = 0.0
    name: str = "formula"
    estimated: bool = False
    scope: Scope = "board"
    now_s: float = 0.0
    silent: list[tuple[float, float]] = field(default_factory=list)
    stale: list[tuple[float, float]] = field(default_factory=list)
    noise: Callable[[], float] = lambda: 0.0
    reads: int = 0

    @property
    def resolution_j(self) -> float | None:
        return None if self.joules is None else self.step_j

    def clock_s(self) -> float:
        return self.now_s

    def read(self) -> Reading | None:
        self.reads += 1
        if any(a <= self.now_s < b for a, b in self.silent):
            return None
        shown_s = math.floor(self.now_s * self.rate_hz + 1e-9) / self.rate_hz
        power = None if self.watts is None else self.watts(shown_s) + self.noise()
        energy = None if self.joules is None else self.joules(shown_s)
        if energy is not None and self.step_j:
            energy = math.floor(energy / self.step_j) * self.step_j
        return Reading(
            source=self.name, scope=self.scope, time_s=self.now_s, power_w=power, energy_j=energy,
            estimated=self.estimated, stale=any(a <= self.now_s < b for a, b in self.stale),
        )  # fmt: skip
