"""A governor at the wheel of a simulated machine, and the plain way of keeping to a cap that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from support.simulated_machine.machine import Doing, SimulatedMachine
from support.simulated_machine.physics import load
from wattwise.governor import ControlSpace, Governor, Limits, Move, Work
from wattwise.governor.controls import Phase
from wattwise.governor.setup import governing_meters
from wattwise_devices.meters import MachineState, Reading, StateReader, open_meters

TICK_S = 0.3
Look = Callable[[], tuple[Sequence[Reading], MachineState]]


@dataclass
class Drive:
    """One governed run. `look` is what the program sees; the machine's history is the truth."""

    machine: SimulatedMachine
    governor: Governor
    look: Look
    moves: list[tuple[float, Move]] = field(default_factory=list)
    tokens: float = 0.0
    computed_s: float = 0.0

    def idle(self, seconds: float) -> None:
        """Wait for a prompt."""
        self._run(seconds, "idle")

    def prefill(self, seconds: float) -> None:
        """Read a prompt."""
        self._run(seconds, "prefill")

    def decode(self, seconds: float) -> None:
        """Write a reply."""
        self._run(seconds, "decode")

    def _run(self, seconds: float, phase: Phase) -> None:
        machine, governor = self.machine, self.governor
        end_s = machine.now_s + seconds
        self.tokens = self.computed_s = 0.0
        self._update(phase)
        while machine.now_s < end_s - 1e-6:
            controls = governor.controls
            threads = controls.threads_batch if phase == "prefill" else controls.threads
            busy, tokens = machine.busy_s, machine.tokens
            if phase == "idle" or governor.stopped:
                machine.advance(TICK_S)
            else:
                machine.advance(TICK_S, Doing(threads=threads, pace=controls.pace, phase=phase))
            self.tokens += machine.tokens - tokens
            self.computed_s += machine.busy_s - busy
            self._update(phase)

    def _update(self, phase: Phase) -> None:
        readings, state = self.look()
        work = Work(phase=phase, tokens=self.tokens, computed_s=self.computed_s, busy_s=self.machine.busy_s)
        moves = self.governor.update(self.machine.now_s, readings, state, work)
        self.moves += [(self.machine.now_s, move) for move in moves]

    def controls_moved(self, since_s: float) -> list[float]:
        """Times of moves of controls since a moment."""
        return [t for t, move in self.moves if move.control is not None and t >= since_s]


def look_at(machine: SimulatedMachine) -> Look:
    """The program's own eyes: its meters and state sensors on the machine's files, the widest scope first."""
    meters = governing_meters(open_meters(machine.system))
    state = StateReader(machine.system)

    def look() -> tuple[list[Reading], MachineState]:
        readings = [meter.read() for meter in meters]
        return [reading for reading in readings if reading is not None], state.read()

    return look


def governor_for(machine: SimulatedMachine, limits: Limits, *, rates: bool = False) -> Governor:
    """With the plan's threads; rates: as a plan knows them that has measured each thread count."""
    spec = machine.spec
    known = (
        {n: 1 / load(spec, n, "decode").seconds_per_token for n in range(1, spec.plan_threads + 1)} if rates else None
    )
    space = ControlSpace.of_threads(spec.plan_threads, spec.plan_threads, adjustable=True, rates=known)
    rates_hz = {meter.name: meter.rate_hz for meter in open_meters(machine.system)}
    return Governor(limits, space, rates_hz=rates_hz)


def window_means(times: list[float], values: list[float], start_s: float, span_s: float) -> list[float]:
    """Means over every window of this length, a second apart, from a moment on."""
    means = []
    begin = start_s
    while begin + span_s <= times[-1] + 1e-6:
        inside = [v for t, v in zip(times, values, strict=True) if begin < t <= begin + span_s]
        means.append(sum(inside) / len(inside))
        begin += 1.0
    return means


def most_within(times: list[float], span_s: float) -> int:
    """The largest number of moves in any window of this length."""
    return max((sum(1 for t in times if start <= t < start + span_s) for start in times), default=0)
