"""Energy on replies and predicted beside measured: over a meter whose watts are known."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from support.chat_model import scripted_model, tiny_model
from wattwise.energy_record import EnergyRecorder
from wattwise.report import Compared, Report
from wattwise.roofline import Estimate, Prediction
from wattwise.stats import Stats
from wattwise_devices.meters.contract import Reading

IDLE_W, BUSY_W = 2.0, 7.0


class KnownMeter:
    """Counts joules of IDLE_W, or BUSY_W while `busy`."""

    name, scope, rate_hz, resolution_j = "known:board", "board", 1000.0, 1e-6

    def __init__(self, estimated: bool = False) -> None:
        self.estimated, self.busy, self.gone = estimated, False, False
        self._joules, self._last_s = 0.0, time.monotonic()

    def read(self) -> Reading | None:
        if self.gone:
            return None
        now_s = time.monotonic()
        self._joules += (BUSY_W if self.busy else IDLE_W) * (now_s - self._last_s)
        self._last_s = now_s
        return Reading(source=self.name, scope="board", time_s=now_s, energy_j=self._joules, estimated=self.estimated)


def model_with(meter: Any, remembered: list[float] | None = None) -> Any:
    model = tiny_model()
    model.recorder = EnergyRecorder(meter, remembered.append if remembered is not None else None)
    return model


def test_without_a_meter_every_figure_of_energy_is_none() -> None:
    stats = scripted_model([65, 66]).chat("hi").stats.to_json()
    names = ("prompt_j", "predicted_j", "idle_w", "energy_source", "energy_scope", "energy_estimated", "energy")
    assert all(stats[name] is None for name in (*names, "prompt_j_per_token", "predicted_j_per_token"))


def test_a_reply_has_joules_by_phase_gross_and_net() -> None:
    meter, remembered = KnownMeter(), []
    model = model_with(meter, remembered)
    time.sleep(1.1)  # an idle time that is long enough to say something
    with model.stream("x" * 60, max_tokens=24, temperature=0) as stream:
        for _ in stream:
            meter.busy = True
    stats = stream.reply.stats
    assert stats.energy_source == "known:board" and stats.energy_scope == "board" and stats.energy_estimated is False
    assert stats.idle_w == pytest.approx(IDLE_W, rel=0.02)
    assert stats.energy is not None
    assert stats.prompt_j == pytest.approx(IDLE_W * stats.energy["prompt"]["covered_s"], rel=0.02), "busy only later"
    assert stats.predicted_j is not None and stats.predicted_j > 0
    assert stats.predicted_j_per_token == pytest.approx(stats.predicted_j / (stats.predicted_n - 1))
    details = json.loads(json.dumps(stats.energy))["predicted"]
    assert details["net_j"] == pytest.approx(details["gross_j"] - stats.idle_w * details["covered_s"])
    assert details["interval_j"][0] <= details["gross_j"] <= details["interval_j"][1]
    assert "J/tok" in stats.line() and "known:board" in stats.details() and "idle 2.0 W" in stats.details()


def test_estimates_are_called_so_and_never_remembered() -> None:
    remembered: list[float] = []
    reply = model_with(KnownMeter(estimated=True), remembered).chat("hello", max_tokens=8)
    assert reply.stats.energy_estimated is True and "estimated" in reply.stats.line()
    assert remembered == []


def test_measured_watts_are_remembered() -> None:
    remembered: list[float] = []
    meter = KnownMeter()
    meter.busy = True
    with model_with(meter, remembered).stream("hello", max_tokens=64, temperature=0) as stream:
        for _ in stream:
            time.sleep(0.002)  # a reader who takes his time: a phase of few readings would not be remembered
    assert remembered and remembered[0] == pytest.approx(BUSY_W, rel=0.05)


def test_a_meter_that_disappears_leaves_none_not_zero() -> None:
    meter = KnownMeter()
    model = model_with(meter)
    meter.gone = True
    stats = model.chat("hello", max_tokens=4).stats
    assert stats.prompt_j is None and stats.predicted_j is None and stats.energy_j is None
    assert "J n/a" in stats.line()


def test_a_cancelled_reply_keeps_what_was_measured() -> None:
    model = model_with(KnownMeter())
    with model.stream("hello", max_tokens=64, temperature=0) as stream:
        next(stream)
    assert stream.reply.finish_reason == "cancelled"
    assert stream.reply.stats.prompt_j is not None


class MadeUpRoofline:
    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def reply(self, prompt: int, reply: int, cached: int) -> Prediction:
        self.asked.append((prompt, reply, cached))
        return Prediction(
            prompt_tokens=prompt, reply_tokens=reply, ttft_ms=Estimate(10.0, 8.0, 12.0),
            prompt_per_second=Estimate(1.0, 1.0, 1.0), tokens_per_second=Estimate(50.0, 40.0, 60.0),
        )  # fmt: skip


def test_a_report_compares_a_reply_with_what_was_predicted_for_its_lengths() -> None:
    import dataclasses

    model, line = tiny_model(), MadeUpRoofline()
    model.plan = dataclasses.replace(model.plan, roofline=line)  # type: ignore[arg-type]
    reply = model.chat("hello", max_tokens=5, temperature=0)
    assert line.asked[-1] == (reply.stats.prompt_n, reply.stats.predicted_n, 0)
    told = reply.to_json()["report"]
    assert told["compared"]["ttft_ms"]["predicted"] == 10.0
    assert told["compared"]["predicted_per_second"]["measured"] == reply.stats.predicted_per_second
    assert told["compared"]["predicted_j_per_token"]["measured"] is None
    assert told["predicted"]["total_bytes"] == model.plan.ledger.total
    again = model.chat("hello there", max_tokens=5, temperature=0)
    assert line.asked[-1][2] == again.stats.cache_n > 0
    assert "ttft_ms predicted 10" in str(again.report) and "memory predicted" in str(again.report)


def test_an_error_is_relative_to_what_was_measured() -> None:
    assert Compared(name="x", unit="", predicted=8.0, low=7, high=9, measured=10.0).error == pytest.approx(0.2)
    assert Compared(name="x", unit="", predicted=None, low=None, high=None, measured=10.0).error is None
    assert Compared(name="x", unit="", predicted=8.0, low=None, high=None, measured=None).error is None


def test_a_report_without_a_reply_compares_memory_only() -> None:
    model = tiny_model()
    report = Report.of(model.plan, model.engine)
    assert report.compared == () and str(report).startswith("memory")
    assert Report.of(model.plan, model.engine, Stats()).compared[0].predicted is None
