"""Watts, tokens and degrees from threads, frequency and duty: plain formulas, no state but the thermal stages'.

Power: idle + while computing (uncore + for each busy core static + c f V^2 by how busy its pipeline is) + joules per
byte read. Speed: a token takes a compute time that shrinks with threads and a memory time that stops shrinking when
the bandwidth is used up, joined by a p-norm; so the last threads cost watts and bring little. Heat: a Foster chain
of RC stages above the ambient temperature; leakage grows with temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["prefill", "decode"]
_BLEND = 3.0  # p of the p-norm that joins compute and memory time (assumption: a soft knee, as measured curves have)
_LEAK_PER_K = 0.01  # static power grows about 1 % per degree (assumption)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreKind:
    """Equal cores. macs_per_ns_ghz: multiply-adds per nanosecond and GHz that one core really reaches."""

    count: int
    min_ghz: float
    max_ghz: float
    min_volts: float
    max_volts: float
    static_w: float
    dynamic_w: float  # c of c f V^2, per GHz and square volt
    macs_per_ns_ghz: float

    def volts(self, ghz: float) -> float:
        """Linear between the two ends of the curve."""
        share = (ghz - self.min_ghz) / (self.max_ghz - self.min_ghz)
        return self.min_volts + share * (self.max_volts - self.min_volts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThermalStage:
    """One RC element: its share of the rise is k_per_w times the power, reached with this time constant."""

    k_per_w: float
    tau_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorSpec:
    """How the machine tells: which files, how often, how late, how rough.

    lag_s: time constant of the source's own averaging. noise: standard deviation, relative (power) or degrees.
    """

    power: Literal["battery_power", "battery_current", "rapl", "pmic", "none"]
    power_every_s: float
    power_lag_s: float
    power_noise: float
    temperature_step_c: float = 1.0
    temperature_lag_s: float = 0.5
    temperature_noise_c: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """A device with one model loaded. Cores are used in the order of `cores`.

    gigabytes, gigamacs: of one decoded token. stall: share of dynamic power that a core waiting for memory still
    uses. single_ghz: turbo with one core busy, falling linearly to the kind's max_ghz with all busy; None: no turbo.
    linger_s: waiting threads that spin after each token. elsewhere_w: power that does not heat the chip.
    trip_c: where the firmware begins to lower the clock.
    """

    name: str
    cores: tuple[CoreKind, ...]
    plan_threads: int
    idle_w: float
    elsewhere_w: float
    uncore_w: float
    joules_per_gb: float
    gb_per_s: float
    gb_per_s_core: float
    gigabytes: float
    gigamacs: float
    stages: tuple[ThermalStage, ...]
    sensors: SensorSpec
    single_ghz: float | None = None
    stall: float = 0.65
    linger_s: float = 0.001
    trip_c: float = 85.0
    battery_wh: float | None = None
    ambient_c: float = 25.0

    @property
    def total_cores(self) -> int:
        """Cores of every kind."""
        return sum(kind.count for kind in self.cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What some threads do at full duty: seconds per token, watts above idle, and the clock of the first core."""

    seconds_per_token: float
    active_w: float
    ghz: float


def busy_cores(spec: MachineSpec, threads: int) -> list[CoreKind]:
    """The kinds of the cores that this many threads run on, one entry per thread."""
    flat = [kind for kind in spec.cores for _ in range(kind.count)]
    return flat[:threads]


def load(spec: MachineSpec, threads: int, phase: Phase, clock: float = 1.0, temperature_c: float = 50.0) -> Load:
    """The steady figures of a thread count. clock: share of the frequency range that the firmware allows, 0..1."""
    kinds = busy_cores(spec, threads)
    clocks = [_ghz(spec, kind, threads, clock) for kind in kinds]
    rates = [kind.macs_per_ns_ghz * ghz for kind, ghz in zip(kinds, clocks, strict=True)]
    macs_per_ns = 0.5 * sum(rates) + 0.5 * len(rates) * min(rates)  # part of the work is split evenly: slow ones delay
    compute_s = spec.gigamacs / macs_per_ns
    gigabytes = spec.gigabytes if phase == "decode" else spec.gigabytes / 64  # a chunk shares its weights
    memory_s = gigabytes / min(spec.gb_per_s, threads * spec.gb_per_s_core)
    seconds = (compute_s**_BLEND + memory_s**_BLEND) ** (1 / _BLEND)
    computing = compute_s / seconds
    activity = computing + (1 - computing) * spec.stall
    leak = max(0.2, 1 + _LEAK_PER_K * (temperature_c - 50.0))
    cores_w = sum(
        kind.static_w * leak + activity * kind.dynamic_w * ghz * kind.volts(ghz) ** 2
        for kind, ghz in zip(kinds, clocks, strict=True)
    )
    active_w = spec.uncore_w + cores_w + spec.joules_per_gb * gigabytes / seconds
    return Load(seconds_per_token=seconds, active_w=active_w, ghz=clocks[0])


def _ghz(spec: MachineSpec, kind: CoreKind, threads: int, clock: float) -> float:
    top = kind.max_ghz
    if spec.single_ghz is not None and kind is spec.cores[0]:
        spread = (threads - 1) / max(1, spec.total_cores - 1)
        top = spec.single_ghz - min(1.0, spread) * (spec.single_ghz - kind.max_ghz)
    return kind.min_ghz + clock * (top - kind.min_ghz)
