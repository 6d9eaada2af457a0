"""The sampling thread in real time: rate, end, cost, and defects of a meter."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from support.meter_fakes import FormulaMeter
from support.recorded_trees import intel_laptop
from wattwise_devices.energy import EnergyIntegrator
from wattwise_devices.meters import open_meters
from wattwise_devices.meters.sampler import MOST_SHARE, Sampler
from wattwise_devices.system import System


class RealTimeMeter(FormulaMeter):
    def read(self):
        self.now_s = time.monotonic()
        return super().read()


def test_it_samples_integrates_and_stops() -> None:
    meter = RealTimeMeter(watts=lambda t: 7.0, rate_hz=100.0)
    integrator = EnergyIntegrator(meter)
    with Sampler(integrator) as sampler:
        assert sampler.running
        integrator.mark("decode")
        time.sleep(1.0)
        integrator.stop()
    assert not sampler.running
    assert all(thread.name != "wattwise-sampler" for thread in threading.enumerate())
    looks = sampler.looks
    assert 3 <= looks <= 14  # 10 Hz with jitter, on a machine that may be busy
    energy = integrator.phases()["decode"]
    assert energy.gross_j == pytest.approx(7.0 * energy.covered_s)
    time.sleep(0.25)
    assert sampler.looks == looks


def test_it_can_start_again_and_stop_twice() -> None:
    sampler = Sampler(EnergyIntegrator(RealTimeMeter(watts=lambda t: 7.0, rate_hz=100.0)))
    sampler.stop()
    for _ in range(2):
        sampler.start()
        sampler.start()
        assert sum(thread.name == "wattwise-sampler" for thread in threading.enumerate()) == 1
        sampler.stop()
        sampler.stop()


def test_a_file_meter_costs_almost_nothing(tmp_path: Path) -> None:
    machine = intel_laptop(tmp_path)
    meter = open_meters(System(root=tmp_path, run=machine.system.run))[0]
    sampler = Sampler(EnergyIntegrator(meter))
    sampler.start()
    time.sleep(3.0)
    sampler.stop()
    assert sampler.looks >= 2
    assert sampler.cpu_share < MOST_SHARE


def test_a_dear_meter_is_asked_less_often() -> None:
    class Dear(RealTimeMeter):
        def read(self):
            end_s = time.thread_time() + 0.02
            while time.thread_time() < end_s:
                pass
            return super().read()

    sampler = Sampler(EnergyIntegrator(Dear(watts=lambda t: 7.0, rate_hz=100.0)))
    with sampler:
        time.sleep(1.6)
    assert 1 <= sampler.looks <= 5


def test_a_defect_in_a_meter_ends_the_sampling_only(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(RealTimeMeter):
        def read(self):
            raise ZeroDivisionError("a defect")

    with caplog.at_level(logging.ERROR, logger="wattwise.devices"):
        sampler = Sampler(EnergyIntegrator(Broken(watts=lambda t: 7.0, rate_hz=100.0)))
        sampler.start()
        deadline = time.monotonic() + 5
        while sampler.running and time.monotonic() < deadline:
            time.sleep(0.02)
        sampler.stop()
    assert "formula" in caplog.text and "a defect" in caplog.text
