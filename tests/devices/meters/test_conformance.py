"""Every meter against the same physics: normal run, wrap-around, vanishing, permission, garbage, standstill.

The expected watts and joules are computed here in closed form; rows (support/meter_rows.py) only write them in the
format of a driver. What holds for all: reading never raises, unknown is None and never 0, energy never falls.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.meter_rows import ROWS, Row
from wattwise_devices.meters import Meter, Reading, diagnose, open_meters

MEAN_W, SWING_W, PERIOD_S = 10.0, 4.0, 20.0
GARBAGE = (
    "", "garbage", "-", "-5", "nan", "inf", "-inf", "1e999", "0x1F4", "1_000", "12 34", "\0\0", "ÿþ", "9" * 40,
    "0", "<unsupported>", "None",
)  # fmt: skip


def true_joules(t: float, scale: float) -> float:
    """The integral of true_watts."""
    period_s = PERIOD_S * scale
    return MEAN_W * t + SWING_W * period_s / math.tau * (1 - math.cos(math.tau * t / period_s))


def true_watts(t: float, scale: float) -> float:
    """A sine, stretched in time by scale."""
    return MEAN_W + SWING_W * math.sin(math.tau * t / (PERIOD_S * scale))


class Bench:
    """A row's machine with its meter, driven along the physics above."""

    def __init__(self, row: Row, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.row, self.machine = row, row.build(root)
        if row.module is not None:
            monkeypatch.setitem(sys.modules, "pynvml", row.module(self.machine))
        self.start_s = self.machine.now_s
        self.show()
        self.meter = self.find()

    @property
    def t(self) -> float:
        return self.machine.now_s - self.start_s

    def find(self) -> Meter:
        found = [m for m in open_meters(self.machine.system, self.row.profile) if m.name == self.row.name]
        assert len(found) == 1, f"{self.row.name} is offered {len(found)} times"
        return found[0]

    def show(self, joules_offset: float = 0.0) -> None:
        scale = self.row.slow
        self.row.show(self.machine, true_watts(self.t, scale), true_joules(self.t, scale) + joules_offset)

    def step(self, seconds: float = 0.25, *, show: bool = True, joules_offset: float = 0.0) -> Reading | None:
        self.machine.now_s += seconds * self.row.slow
        if show:
            self.show(joules_offset)
        return self.meter.read()

    def break_all(self) -> Iterator[str]:
        """The names of what can break, one after the other."""
        for target in self.row.breakable:
            yield target if isinstance(target, str) else " ".join(target)

    def spoil(self, index: int, text: str | None) -> None:
        """Put a text in place of one source; None removes it."""
        target = self.row.breakable[index]
        if isinstance(target, tuple):
            self.machine.commands[target] = text
        elif text is None:
            self.machine.remove(target)
        else:
            self.machine.put(target, text)


@pytest.fixture(params=ROWS, ids=str)
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(request.param, tmp_path, monkeypatch)


def sound(reading: Reading | None, row: Row) -> Reading:
    """What must hold for every reading that is not None."""
    assert reading is not None
    assert (reading.source, reading.scope) == (row.name, row.scope)
    assert reading.estimated == (row.profile is not None)
    assert reading.power_w is None or reading.power_w > 0
    assert reading.energy_j is None or reading.energy_j >= 0
    assert (reading.energy_j is not None) == row.counts
    return reading


def test_normal_run_follows_the_physics(bench: Bench) -> None:
    row, last_j, offset_j = bench.row, -1.0, true_joules(bench.t, bench.row.slow)
    for _ in range(120):
        reading = sound(bench.step(), row)
        assert not reading.stale
        assert reading.time_s == bench.machine.now_s
        joules, watts = true_joules(bench.t, row.slow) - offset_j, true_watts(bench.t, row.slow)
        if row.counts:
            assert reading.energy_j is not None
            assert reading.energy_j == pytest.approx(joules, abs=1.5 * row.joule_step + 1e-7 * joules)
            assert reading.energy_j >= last_j
            last_j = reading.energy_j
        else:
            assert reading.power_w == pytest.approx(watts, abs=row.watt_step)
        if row.counts and bench.t > 4 * row.slow:  # power is the mean over a short time, blurred by the count's step
            blur_w = 2 * row.joule_step / (0.25 * row.slow)
            assert reading.power_w == pytest.approx(watts, abs=0.5 + blur_w)
    if row.counts:
        assert (bench.meter.resolution_j or 0) == pytest.approx(row.joule_step, rel=1.01)


def only(rows: list[Row]) -> pytest.MarkDecorator:
    """Those sources that can do such a thing at all."""
    return pytest.mark.parametrize("bench", rows, indirect=True, ids=str)


WRAPPING = [row for row in ROWS if row.range_j is not None]
# One hardware count; neither a sum of several nor a model, whose parts sort out resets themselves.
SINGLE = [row for row in ROWS if row.counts and row.slow == 1 and not row.profile and row.name != "rapl:packages"]


@only(WRAPPING)
def test_wrap_around_is_undone(bench: Bench) -> None:
    row = bench.row
    offset_j = true_joules(bench.t, 1.0)
    bench.step()
    # Jump close to the end of the range in believable steps, then count over it twice.
    wraps = 0
    extra_j = 0.0
    last_j = 0.0
    while wraps < 2:
        before = bench.machine.system.read_int(str(row.breakable[0]))
        extra_j += 1900.0 * 30
        reading = sound(bench.step(30.0, joules_offset=extra_j), row)
        after = bench.machine.system.read_int(str(row.breakable[0]))
        assert before is not None and after is not None and reading.energy_j is not None
        wraps += after < before
        expected = true_joules(bench.t, 1.0) + extra_j - offset_j
        assert reading.energy_j == pytest.approx(expected, abs=3 * row.joule_step + 1e-8 * expected)
        assert reading.energy_j > last_j
        last_j = reading.energy_j


@only(SINGLE)
def test_a_reset_counter_invents_nothing(bench: Bench) -> None:
    row = bench.row
    for _ in range(20):
        reading = bench.step()
    assert reading is not None and reading.energy_j is not None
    before_j = reading.energy_j
    bench.spoil(0, "1000")
    bench.machine.now_s += 0.25
    reading = bench.meter.read()
    assert reading is not None and reading.stale and reading.energy_j == before_j and reading.power_w is None
    bench.machine.now_s += 0.25
    bench.spoil(0, "3001000" if "nvml" not in str(row.breakable[0]) else "4000")
    reading = bench.meter.read()
    assert reading is not None and not reading.stale
    assert reading.energy_j == pytest.approx(before_j + 3.0, rel=1e-6)


def test_a_source_that_vanishes_is_none_and_comes_back(bench: Bench) -> None:
    row, last_j = bench.row, 0.0
    for index, _ in enumerate(bench.break_all()):
        for _ in range(4):
            reading = sound(bench.step(), row)
        last_j = reading.energy_j or 0.0
        bench.spoil(index, None)
        for _ in range(3):
            assert bench.step(show=False) is None
        bench.show()
        reading = bench.step()
        if reading is not None and reading.stale:  # what was missed cannot always be told
            reading = bench.step()
        reading = sound(reading, row)
        assert not reading.stale
        assert (reading.energy_j or 0.0) >= last_j


def test_without_permission_there_is_no_meter_but_a_reason(
    bench: Bench,
) -> None:
    row = bench.row
    target = row.breakable[0]
    if isinstance(target, tuple):
        bench.machine.commands[target] = None
    else:
        bench.machine.deny(target)
    assert bench.step(show=False) is None, "a file that can no longer be read is not a value"
    names = [m.name for m in open_meters(bench.machine.system, row.profile)]
    reasons = [reason for d in diagnose(bench.machine.system, row.profile) for reason in d.reasons]
    if row.scope == "battery":  # opened nevertheless: the plug may be pulled, the gauge may answer later
        return
    if row.name == "model:test-board":  # falls back to what can still be seen
        assert any("/proc/stat" in reason for reason in reasons)
        return
    if row.name == "nvidia:0" and row.counts:  # falls back to samples of power
        assert [m.resolution_j for m in open_meters(bench.machine.system) if m.name == row.name] == [None]
        return
    assert row.name not in names
    assert any(reason for reason in reasons)
    if row.name.startswith("rapl:") and row.name != "rapl:packages":
        assert any("root" in reason and str(target) in reason for reason in reasons)


def test_garbage_is_never_a_value(bench: Bench) -> None:
    row = bench.row
    for index, _ in enumerate(bench.break_all()):
        for garbage in GARBAGE:
            reading = bench.step()
            before_j = (reading.energy_j or 0.0) if reading is not None else 0.0
            bench.machine.now_s += 0.25 * row.slow
            bench.spoil(index, garbage)
            reading = bench.meter.read()
            if reading is None:
                continue
            if garbage == "0" and row.counts:  # a possible value of a counter; it must not look like consumption
                assert reading.stale or (reading.energy_j or 0.0) - before_j < 1e6
                continue
            if garbage in ("0", "-5") and row.name == "jetson:inputs":
                continue  # an idle rail may show nothing, or a few milliamperes below zero
            assert reading.stale, f"{garbage!r} became {reading}"
            assert reading.energy_j is None or reading.energy_j - before_j < 1.0
    for _ in range(20):
        reading = bench.step()
    assert not sound(reading, row).stale, "the meter must recover from garbage"


def test_a_source_that_stands_still_is_stale(bench: Bench) -> None:
    row = bench.row
    for _ in range(8):
        assert not sound(bench.step(), row).stale
    if row.standstill_s is None:
        for _ in range(20):
            reading = bench.step(show=False)
            assert reading is None or reading.power_w is not None or row.counts
        return
    step_s = row.standstill_s / 8
    for _ in range(7):
        bench.machine.now_s += step_s
        assert not sound(bench.meter.read(), row).stale
    bench.machine.now_s += 2 * step_s
    reading = sound(bench.meter.read(), row)
    assert reading.stale
    assert not row.counts or reading.power_w is None, "a counter that stands still does not mean 0 W"
    for _ in range(8):
        reading = bench.step(1.0)
    assert not sound(reading, row).stale, "moving again"
