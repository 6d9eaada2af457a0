"""Energy of each reply by phase, where a meter exists: gross, net of idle, with source, interval and what was missed.

One recorder belongs to a loaded model. Idle power is what the meter says of the time between replies, when nothing of
ours runs. No meter: nothing is opened twice, no thread is started, every figure is None. Not the governor: that reads
meters to act on them, this one to report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from wattwise.stats import Stats
from wattwise_devices.energy import Baseline, Energy, EnergyIntegrator
from wattwise_devices.machine import Machine
from wattwise_devices.meters import Meter, Reading, open_meters
from wattwise_devices.meters.registry import covers_whole
from wattwise_devices.meters.sampler import Sampler

PROMPT, REPLY = "prompt", "predicted"  # the phases, by the names that stats use
_LEAST_IDLE_S, _MOST_IDLE_S = 1.0, 600.0
_IDLE_ERROR = 0.1  # of idle power, at least


class EnergyRecorder:
    """remember: called with a phase's mean watts after a reply, where they were measured and not estimated."""

    def __init__(self, meter: Meter, remember: Callable[[float], None] | None = None) -> None:
        self.meter = meter
        self._remember = remember
        self._rest: Reading | None = meter.read()  # since then nothing of ours has run
        self.baseline: Baseline | None = None

    @classmethod
    def here(cls, machine: Machine, remember: Callable[[float], None] | None = None) -> EnergyRecorder | None:
        """Over the best meter of this machine; None where there is none that stands for the device or processor."""
        meters = [m for m in open_meters(machine.system, machine.profile) if covers_whole(m)]
        return cls(meters[0], remember) if meters else None

    def reply(self, stats: Stats) -> Recording:
        """A context around one reply, whose figures go into `stats` at its end."""
        return Recording(self, stats)

    def ended(self, phases: dict[str, Energy]) -> None:
        """A reply is over: the next idle time begins, and its watts may be remembered."""
        self._rest = self.meter.read()
        energy = phases.get(REPLY)
        is_good = energy is not None and not energy.estimated and not energy.short and energy.gap_s == 0
        if is_good and energy is not None and energy.mean_w is not None and self._remember is not None:
            self._remember(energy.mean_w)

    def look_at_idle(self) -> None:
        """Idle power from the time since the last reply, if it was long enough to say something."""
        before, now = self._rest, self.meter.read()
        if before is None or now is None or before.stale or now.stale:
            return
        seconds = now.time_s - before.time_s
        if not _LEAST_IDLE_S <= seconds <= _MOST_IDLE_S:
            return
        if before.energy_j is not None and now.energy_j is not None:
            watts, error = (now.energy_j - before.energy_j) / seconds, 2 * (self.meter.resolution_j or 0.0) / seconds
        elif before.power_w is not None and now.power_w is not None:
            watts, error = (before.power_w + now.power_w) / 2, abs(before.power_w - now.power_w)
        else:
            return
        error = max(error, _IDLE_ERROR * watts)
        self.baseline = Baseline(power_w=watts, error_w=error, seconds=seconds, source=self.meter.name)


class Recording:
    """One reply. `phase` says what begins; leaving the context writes the figures."""

    def __init__(self, recorder: EnergyRecorder, stats: Stats) -> None:
        self._recorder, self._stats = recorder, stats
        self._integrator = EnergyIntegrator(recorder.meter)
        self._sampler = Sampler(self._integrator)

    def __enter__(self) -> Recording:
        self._recorder.look_at_idle()
        self._integrator.baseline = self._recorder.baseline
        self._integrator.sample()
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sampler.stop()
        self._integrator.stop()
        phases = self._integrator.phases()
        write_energy(self._stats, phases)
        self._recorder.ended(phases)

    def phase(self, name: str) -> None:
        """PROMPT or REPLY begins now."""
        self._integrator.mark(name)


class Recorded(Protocol):
    """What a generation tells about its phases."""

    def __enter__(self) -> object: ...
    def __exit__(self, *_: object) -> None: ...
    def phase(self, name: str) -> None: ...


class NoRecording:
    """Where nothing measures."""

    def __enter__(self) -> NoRecording:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def phase(self, name: str) -> None:
        pass


NO_RECORDING = NoRecording()


def write_energy(stats: Stats, phases: dict[str, Energy]) -> None:
    """Figures of the phases into the stats; None stays None."""
    prompt, reply = phases.get(PROMPT), phases.get(REPLY)
    some = reply or prompt
    if some is None:
        return
    stats.energy_source, stats.energy_scope, stats.energy_estimated = some.source, some.scope, some.estimated
    stats.idle_w = some.idle_w
    stats.prompt_j = prompt.gross_j if prompt is not None else None
    stats.predicted_j = reply.gross_j if reply is not None else None
    details: dict[str, Any] = {name: energy.to_json() for name, energy in phases.items()}
    stats.energy = details
