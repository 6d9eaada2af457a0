"""Joules per token at equal power: the governor against running flat out and sleeping to the same average.

    python benchmarks/governor_simulated.py

On the simulated machines of the tests; a table in Markdown. "possible" is the most that any thread count and pace
could save at that power by the machine's own formulas: near full power, and on the phone, physics leaves little.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.simulated_machine import MACHINES, SimulatedMachine
from support.simulated_machine.comparing import cap_at, flat_out_and_sleep, metered_j, most_saved
from support.simulated_machine.driving import Drive, governor_for, look_at
from support.simulated_machine.physics import MachineSpec
from wattwise.governor import Limits

SHARES = (0.3, 0.5, 0.7, 0.9)  # of the range from waiting to flat out
LEARN_S, MEASURED_S = 20.0, 120.0


def row(spec: MachineSpec, share: float, folder: Path) -> str:
    """One machine at one cap."""
    cap_w = cap_at(spec, share)
    machine = SimulatedMachine(spec, folder / "governed")
    driven = Drive(machine, governor_for(machine, Limits(power_w=cap_w)), look_at(machine))
    driven.idle(5)
    driven.decode(LEARN_S)
    start_s, joules, tokens = machine.now_s, machine.joules, machine.tokens
    driven.decode(MEASURED_S)
    drawn_j, made = metered_j(machine, joules, start_s), machine.tokens - tokens
    watts = drawn_j / MEASURED_S
    plain_j = flat_out_and_sleep(spec, folder / "plain", watts, MEASURED_S)
    controls, saved = driven.governor.controls, 1 - drawn_j / made / plain_j
    return (
        f"| {spec.name} | {cap_w:.1f} | {watts:.2f} | {controls.threads} | {100 * controls.pace:.0f} % "
        f"| {made / MEASURED_S:.2f} | {drawn_j / made:.3f} | {plain_j:.3f} | {100 * saved:.1f} % "
        f"| {100 * most_saved(spec, watts):.1f} % |"
    )


def main() -> None:
    """All machines, all caps."""
    print("| machine | cap W | W | threads | pace | tok/s | J/token | flat out J/token | saved | possible |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for spec in MACHINES.values():
        for share in SHARES:
            with tempfile.TemporaryDirectory() as folder:
                print(row(spec, share, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
