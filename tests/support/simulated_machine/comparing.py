"""What a governor is compared with: flat out and asleep to the same average, and the best that the formulas allow."""

from __future__ import annotations

from pathlib import Path

from support.simulated_machine.driving import TICK_S
from support.simulated_machine.machine import Doing, SimulatedMachine
from support.simulated_machine.physics import MachineSpec, load


def metered_idle_w(spec: MachineSpec) -> float:
    return spec.idle_w - (spec.elsewhere_w if spec.sensors.power == "rapl" else 0.0)


def cap_at(spec: MachineSpec, share: float) -> float:
    """A cap between waiting (0) and the plan's threads flat out (1)."""
    return metered_idle_w(spec) + share * load(spec, spec.plan_threads, "decode").active_w


def flat_out_and_sleep(spec: MachineSpec, folder: Path, watts: float, seconds: float) -> float:
    """Joules a token of all the plan's threads at full speed, asleep whenever the average is above `watts`."""
    machine = SimulatedMachine(spec, folder)
    machine.advance(5)
    start_s, joules, tokens, drawn_j = machine.now_s, machine.joules, machine.tokens, 0.0
    while machine.now_s < start_s + seconds:
        busy = Doing(threads=spec.plan_threads) if drawn_j <= watts * (machine.now_s - start_s) else Doing(threads=0)
        machine.advance(TICK_S, busy)
        drawn_j = metered_j(machine, joules, start_s)
    return drawn_j / (machine.tokens - tokens)


def metered_j(machine: SimulatedMachine, joules: float, start_s: float) -> float:
    """Joules that the machine's meter saw since a moment when its count was `joules`."""
    unseen_w = machine.spec.idle_w - machine.metered_w(machine.spec.idle_w)
    return machine.joules - joules - unseen_w * (machine.now_s - start_s)


def most_saved(spec: MachineSpec, watts: float) -> float:
    """The largest share of joules that any thread count and pace can save at this power, by the formulas."""

    def tokens_per_s(threads: int) -> float:
        figures = load(spec, threads, "decode")
        return min(1.0, (watts - metered_idle_w(spec)) / figures.active_w) / figures.seconds_per_token

    return 1 - tokens_per_s(spec.plan_threads) / max(tokens_per_s(n) for n in range(1, spec.plan_threads + 1))
