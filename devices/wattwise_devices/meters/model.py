"""An estimate where nothing can be measured: idle watts plus watts per busy core, from the device's profile.

Never a measurement: every reading is marked estimated. Busy time comes from /proc/stat, by CPU; where that is closed
(Android), from this process's own CPU time, and then other programs are not seen. Of the hardware threads of one core
the busiest counts: a second thread adds little power. Formats: Documentation/filesystems/proc.rst, section 1.7.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from wattwise_devices.meters.contract import Scope
from wattwise_devices.meters.counter import CounterMeter
from wattwise_devices.meters.source import Opened
from wattwise_devices.profile import Profile
from wattwise_devices.system import System
from wattwise_devices.topology import read_topology

_TICKS_PER_S = 100.0  # USER_HZ; the kernel's interface keeps it at 100 on everything this runs on
_RATE_HZ = 100.0
_BUSY_FIELDS = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq; not idle, iowait or steal (another machine's)


def open_model(system: System, profile: Profile | None = None) -> Opened:
    """Meter "model:<profile>" of the whole board, or of this process where only that can be seen."""
    if profile is None:
        return Opened(reasons=("no device profile describes this machine, so its watts cannot even be estimated",))
    if profile.idle_w is None or not profile.busy_core_w:
        return Opened(reasons=(f"the profile {profile.name} does not tell idle watts and watts per busy core",))
    by_core = _Cores(system, profile)
    if by_core.busy_j() is not None:
        return Opened((_meter(system, profile, "board", by_core.busy_j, by_core.dearest_w),))
    watts = max(profile.busy_core_w.values())
    start_s = time.process_time()
    meter = _meter(system, profile, "process", lambda: watts * (time.process_time() - start_s), watts)
    return Opened((meter,), ("/proc/stat cannot be read: the estimate sees only this process",))


def _meter(
    system: System, profile: Profile, scope: Scope, busy_j: Callable[[], float | None], core_w: float
) -> CounterMeter:
    idle_w, start_s = profile.idle_w or 0.0, system.clock_s()

    def count_j() -> float | None:
        busy = busy_j()
        return None if busy is None else idle_w * (system.clock_s() - start_s) + busy

    return CounterMeter(
        f"model:{profile.name}", scope, system, count_j,
        resolution_j=core_w / _TICKS_PER_S, rate_hz=_RATE_HZ, estimated=True, window_s=0.5,
    )  # fmt: skip


class _Cores:
    """Joules above idle of all cores since it was made, from their busy ticks."""

    def __init__(self, system: System, profile: Profile) -> None:
        self._system = system
        self.dearest_w = max(profile.busy_core_w.values())
        self._watts: dict[int, float] = {}
        self._groups: dict[int, int] = {}  # CPU -> first CPU of its physical core
        for core in read_topology(system).cores:
            self._watts[core.cpu] = profile.watts_of(core.kind) or self.dearest_w
            self._groups[core.cpu] = core.cpu if core.smt_sibling_of is None else core.smt_sibling_of
        self._last: dict[int, float] = {}
        self._joules = 0.0

    def busy_j(self) -> float | None:
        """Never falling; None if /proc/stat cannot be read or is garbled."""
        now = parse_cpu_busy_s(self._system.read_text("/proc/stat"))
        if not now:
            return None
        cores: dict[int, tuple[float, float]] = {}  # physical core -> busy seconds of its busiest thread, watts
        for cpu, busy_s in now.items():
            step_s = max(0.0, busy_s - self._last.get(cpu, busy_s))  # a CPU that was offline starts anew
            group, watts = self._groups.get(cpu, cpu), self._watts.get(cpu, self.dearest_w)
            cores[group] = max(cores.get(group, (0.0, watts)), (step_s, watts))
        self._joules += sum(step_s * watts for step_s, watts in cores.values())
        self._last = now
        return self._joules


def parse_cpu_busy_s(text: str | None) -> dict[int, float]:
    """Busy seconds since the start by CPU; {} if the text is not that of /proc/stat."""
    busy_s: dict[int, float] = {}
    for line in (text or "").splitlines():
        words = line.split()
        if not words or not words[0].startswith("cpu") or words[0] == "cpu":
            continue
        cpu, counts = words[0][3:], words[1:8]
        if not cpu.isdecimal() or len(counts) < 4 or not all(word.isdecimal() for word in counts):
            return {}
        ticks = [int(word) for word in counts]
        busy_s[int(cpu)] = sum(ticks[field] for field in _BUSY_FIELDS if field < len(ticks)) / _TICKS_PER_S
    return busy_s
