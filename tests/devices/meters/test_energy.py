"""The integrator against closed forms: the interval must hold the true energy, and not by being enormous."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest

from support.meter_fakes import FormulaMeter
from wattwise_devices.energy import Baseline, Energy, EnergyIntegrator, measure_idle
from wattwise_devices.errors import PlanError

Formula = Callable[[float], float]


def ramp(t: float) -> float:
    return 4 + 0.8 * t


def ramp_joules(t: float) -> float:
    return 4 * t + 0.4 * t * t


def sine(t: float) -> float:
    return 10 + 6 * math.sin(1.7 * t)


def sine_joules(t: float) -> float:
    return 10 * t + 6 / 1.7 * (1 - math.cos(1.7 * t))


def step(t: float) -> float:
    return 3.0 if t < 4.037 else 15.0


def step_joules(t: float) -> float:
    return 3 * t + 12 * max(0.0, t - 4.037)


SHAPES = {"ramp": (ramp, ramp_joules), "sine": (sine, sine_joules), "step": (step, step_joules)}


def integrate(meter: FormulaMeter, seconds: float, hz: float, max_gap_s: float | None = None) -> EnergyIntegrator:
    integrator = EnergyIntegrator(meter, clock_s=meter.clock_s, max_gap_s=max_gap_s)
    run(integrator, meter, seconds, hz)
    return integrator


def run(integrator: EnergyIntegrator, meter: FormulaMeter, seconds: float, hz: float) -> None:
    start_s = meter.now_s
    for index in range(round(seconds * hz) + 1):
        meter.now_s = start_s + index / hz
        integrator.sample()


def covers(energy: Energy, true_j: float, most: float) -> None:
    """The interval holds the truth and is at most this share of it."""
    assert energy.gross_j is not None and energy.error_j is not None and energy.interval_j is not None
    assert abs(energy.gross_j - true_j) <= energy.error_j + 1e-9
    assert energy.interval_j[0] - 1e-9 <= true_j <= energy.interval_j[1] + 1e-9
    assert energy.error_j <= most * true_j


@pytest.mark.parametrize("hz", [2.0, 5.0, 10.0])
@pytest.mark.parametrize("name", SHAPES)
def test_trapezoid_of_samples(name: str, hz: float) -> None:
    watts, joules = SHAPES[name]
    meter = FormulaMeter(watts=watts, rate_hz=1e4)
    energy = integrate(meter, 12.0, hz).total()
    covers(energy, joules(12.0), most=0.35 / hz)
    assert energy.method == "samples" and energy.gaps == 0 and energy.covered_s == pytest.approx(12)
    if name == "ramp":  # the trapezoid rule is exact on straight lines
        assert energy.gross_j == pytest.approx(joules(12.0), rel=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_values_that_are_held_between_updates(name: str) -> None:
    watts, joules = SHAPES[name]
    for seconds in (3.0, 7.3, 12.0):
        energy = integrate(FormulaMeter(watts=watts, rate_hz=2.0), seconds, 10.0).total()
        covers(energy, joules(seconds), most=0.6)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("rate_hz", "step_j"), [(1000.0, 61e-6), (10.0, 1e-3), (1.0, 0.5)])
def test_differences_of_a_counter(name: str, rate_hz: float, step_j: float) -> None:
    watts, joules = SHAPES[name]
    for end_s in (2.31, 6.0, 11.97):
        meter = FormulaMeter(watts=watts, joules=joules, rate_hz=rate_hz, step_j=step_j, now_s=0.37)
        integrator = EnergyIntegrator(meter, clock_s=meter.clock_s)
        for meter.now_s in (0.37, 1.1, end_s):
            integrator.sample()
        energy = integrator.total()
        true_j = joules(end_s) - joules(0.37)
        covers(energy, true_j, most=5.0 / rate_hz + 2.5 * step_j / true_j + 0.001)
        assert energy.method == "counter"


def test_a_counter_needs_no_samples_in_between() -> None:
    meter = FormulaMeter(joules=sine_joules, rate_hz=1000.0)
    integrator = EnergyIntegrator(meter, clock_s=meter.clock_s)
    for meter.now_s in (0.0, 300.0):
        integrator.sample()
    covers(integrator.total(), sine_joules(300.0), most=0.001)
    assert integrator.total().gaps == 0


def test_the_interval_holds_19_times_out_of_20() -> None:
    """Load that jumps at random times, and a sensor with noise: 200 draws each, fixed seeds."""
    inside = {"jumps": 0, "noise": 0}
    for seed in range(200):
        rng = random.Random(seed)
        jumps = sorted(rng.uniform(0, 20) for _ in range(12))
        levels = [rng.uniform(2, 15) for _ in range(13)]
        true_j = sum(w * (b - a) for w, a, b in zip(levels, [0.0, *jumps], [*jumps, 20.0], strict=True))
        meter = FormulaMeter(watts=lambda t, j=jumps, w=levels: w[sum(x <= t for x in j)], rate_hz=100.0)
        energy = integrate(meter, 20.0, 5.0).total()
        inside["jumps"] += energy.interval_j is not None and energy.interval_j[0] <= true_j <= energy.interval_j[1]
        noisy = FormulaMeter(watts=lambda t: 8.0, rate_hz=100.0, noise=lambda r=rng: r.gauss(0, 0.6))
        energy = integrate(noisy, 20.0, 5.0).total()
        inside["noise"] += energy.interval_j is not None and energy.interval_j[0] <= 160 <= energy.interval_j[1]
        assert energy.error_j is not None and energy.error_j < 0.05 * 160
    assert min(inside.values()) >= 190, inside


@pytest.mark.parametrize("counts", [True, False])
def test_phases_share_what_the_total_has(counts: bool) -> None:
    """Prefill 20 W for 2 s, decode 8 W for 6 s, twice; 3 W before, between and after."""

    def watts(t: float) -> float:
        inside = (t - 5) % 10
        return 3.0 if t < 5 or t >= 25 or inside >= 8 else 20.0 if inside < 2 else 8.0

    edges = (0.0, 5.0, 7.0, 13.0, 15.0, 17.0, 23.0, 25.0)

    def joules(t: float) -> float:
        cuts = [e for e in edges if e < t] + [t]
        return sum((b - a) * watts((a + b) / 2) for a, b in itertools.pairwise(cuts))

    meter = FormulaMeter(watts=watts, joules=joules if counts else None, rate_hz=1000.0)
    idle = measure_idle(meter, 3.0, sleep=lambda s: advance(meter, s), clock_s=meter.clock_s)
    assert idle is not None and idle.power_w == pytest.approx(3.0, abs=0.01)
    meter.now_s = 5.0
    integrator = EnergyIntegrator(meter, idle, clock_s=meter.clock_s)
    for phase, seconds in (("prefill", 2), ("decode", 6), (None, 2), ("prefill", 2), ("decode", 6)):
        integrator.mark(phase)
        run(integrator, meter, seconds, 10.0)
    integrator.stop()
    prefill, decode, total = integrator.phases()["prefill"], integrator.phases()["decode"], integrator.total()
    covers(prefill, 80.0, most=0.2)
    covers(decode, 96.0, most=0.2)
    covers(total, 182.0, most=0.2)
    for phase, seconds, net_j in ((prefill, 4.0, 68.0), (decode, 12.0, 60.0)):
        assert phase.seconds == pytest.approx(seconds) and phase.covered_s == pytest.approx(seconds)
        assert phase.net_j is not None and phase.net_error_j is not None
        assert abs(phase.net_j - net_j) <= phase.net_error_j
        assert phase.idle_w == idle.power_w
        assert phase.mean_w == pytest.approx(net_j / seconds + 3.0, rel=0.1)


def advance(meter: FormulaMeter, seconds: float) -> None:
    meter.now_s += seconds


def test_gaps_are_counted_and_not_bridged() -> None:
    meter = FormulaMeter(watts=lambda t: 10.0, rate_hz=10.0, silent=[(4.05, 10.0), (12.05, 13.0)])
    energy = integrate(meter, 20.0, 10.0, max_gap_s=2.0).total()
    assert (energy.gaps, energy.missed) == (1, 59 + 9)
    assert energy.gap_s == pytest.approx(6.0)
    assert energy.covered_s == pytest.approx(14.0), "the second silence is within the limit"
    assert energy.gross_j == pytest.approx(140.0)
    assert energy.seconds == pytest.approx(20.0)


def test_a_stale_reading_makes_a_gap_even_of_a_counter() -> None:
    meter = FormulaMeter(joules=lambda t: 10 * t, rate_hz=1000.0, stale=[(5.0, 6.0)])
    energy = integrate(meter, 20.0, 10.0).total()
    assert energy.stale == 10 and energy.gaps == 1
    assert energy.gap_s == pytest.approx(1.1)
    assert energy.gross_j == pytest.approx(189.0)


def test_a_boundary_without_a_reading_is_split_and_says_how_unsure_it_is() -> None:
    def joules(t: float) -> float:
        return 20 * min(t, 5.0) + 2 * max(0.0, t - 5.0)

    meter = FormulaMeter(joules=joules, rate_hz=1000.0, silent=[(4.5, 5.5)])
    integrator = EnergyIntegrator(meter, clock_s=meter.clock_s)
    integrator.mark("prefill")
    run(integrator, meter, 5.0, 10.0)
    integrator.mark("decode")
    run(integrator, meter, 5.0, 10.0)
    integrator.stop()
    phases = integrator.phases()
    covers(phases["prefill"], 100.0, most=0.2)
    assert phases["decode"].error_j is not None and phases["decode"].gross_j is not None
    assert abs(phases["decode"].gross_j - 10.0) <= phases["decode"].error_j
    covers(integrator.total(), 110.0, most=0.001)


def test_a_boundary_between_samples_divides_the_trapezoid_where_it_lies() -> None:
    """On a straight line the parts are exact wherever the boundary lies: here at 30 % of a long step."""
    meter = FormulaMeter(watts=ramp, silent=[(4.05, 4.95)])
    integrator = EnergyIntegrator(meter, clock_s=meter.clock_s)
    integrator.mark("prefill")
    run(integrator, meter, 4.3, 10.0)
    integrator.mark("decode")
    run(integrator, meter, 5.7, 10.0)
    integrator.stop()
    phases = integrator.phases()
    assert phases["prefill"].gross_j == pytest.approx(ramp_joules(4.3))
    assert phases["decode"].gross_j == pytest.approx(ramp_joules(10.0) - ramp_joules(4.3))


def test_nothing_measured_is_none_and_not_zero() -> None:
    meter = FormulaMeter(watts=lambda t: 5.0, silent=[(0.0, 99.0)])
    integrator = integrate(meter, 5.0, 10.0)
    integrator.mark("decode")
    energy = integrator.phases()["decode"]
    for value in (energy.gross_j, energy.error_j, energy.mean_w, energy.interval_j, energy.method):
        assert value is None
    assert integrator.total().missed == 52
    assert measure_idle(meter, 2.0, sleep=lambda s: advance(meter, s), clock_s=meter.clock_s) is None


def test_short_phases_and_estimates_say_so() -> None:
    energy = integrate(FormulaMeter(watts=lambda t: 5.0, rate_hz=1.0), 15.0, 4.0).total()
    assert energy.short
    energy = integrate(FormulaMeter(watts=lambda t: 5.0, rate_hz=1.0), 25.0, 4.0).total()
    assert not energy.short and not energy.estimated and energy.error_j == pytest.approx(0, abs=1e-9)
    energy = integrate(FormulaMeter(watts=lambda t: 5.0, rate_hz=1.0, estimated=True), 25.0, 4.0).total()
    assert energy.estimated and energy.error_j == pytest.approx(0.3 * 125)
    assert energy.to_json()["interval_j"] == energy.interval_j


def test_idle_of_another_meter_is_refused() -> None:
    baseline = Baseline(power_w=3, error_w=0.1, seconds=3, source="battery")
    with pytest.raises(PlanError, match=r"battery.*formula"):
        EnergyIntegrator(FormulaMeter(watts=lambda t: 5.0), baseline)
