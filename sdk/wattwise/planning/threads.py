"""How many threads: which counts are worth trying here, and which one the measured rates prefer.

Engines let their threads wait for each other by spinning, so one thread more than there are cores (or than a control
group's quota pays for) makes every token many times slower. No count ever exceeds what affinity and quota allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from wattwise_devices.machine import Machine

_FEW = 4
_WORTH_IT = 0.03  # of the time: less is not worth another core


def most_threads(machine: Machine) -> int:
    """Cores that this process may keep busy at once: affinity, and the quota rounded down; at least 1."""
    return max(1, math.floor(machine.usable_cpus + 0.01))


def physical_cores(machine: Machine, kind: str | None = None) -> int:
    """Cores that may be used, hardware threads of one core counted once. kind: only such ones."""
    usable = set(machine.usable)
    cores = [c for c in machine.cpu.cores if not usable or c.cpu in usable]
    seen = {c.smt_sibling_of if c.smt_sibling_of is not None else c.cpu for c in cores if kind in (None, c.kind)}
    return len(seen)


def default_threads(machine: Machine) -> int:
    """Where nothing was measured: every fast physical core."""
    fast = physical_cores(machine, "performance") or physical_cores(machine)
    return max(1, min(most_threads(machine), fast or most_threads(machine)))


def candidates(machine: Machine) -> tuple[int, ...]:
    """Counts to measure: all of a few, else powers of two and the natural boundaries."""
    most = most_threads(machine)
    if most <= _FEW:
        return tuple(range(1, most + 1))
    boundaries = {physical_cores(machine, "performance"), physical_cores(machine), most}
    powers = {1 << i for i in range(most.bit_length())}
    return tuple(sorted(n for n in boundaries | powers if 1 <= n <= most))


def fastest(counts: Sequence[int], seconds: Callable[[int], float]) -> int:
    """The count with the shortest time; a smaller one where the difference is not worth a core."""
    times = {n: seconds(n) for n in counts}
    best = min(times.values())
    return min(n for n, time in times.items() if time <= best * (1 + _WORTH_IT))
