"""Energy on the simulated machines, whose sensors lag, step and make noise: the truth lies in the interval.

The simulation keeps the joules that it really used; it was written for the governor and knows nothing of the meters'
code. What a meter cannot see (RAPL knows no screen) is taken off.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from support.simulated_machine import (
    LAPTOP,
    LAPTOP_RAPL,
    PHONE,
    PI5_BARE,
    PI5_FAN,
    Doing,
    MachineSpec,
    SimulatedMachine,
)
from support.simulated_machine.machine import STEP_S
from support.simulated_machine.physics import Phase
from wattwise_devices.energy import EnergyIntegrator, measure_idle
from wattwise_devices.meters import StateReader, open_meters

SOURCES = {LAPTOP: "battery", LAPTOP_RAPL: "rapl:package-0", PHONE: "battery", PI5_BARE: "pmic", PI5_FAN: "pmic"}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("spec", SOURCES, ids=lambda spec: spec.name)
def test_energy_of_phases(spec: MachineSpec, seed: int, tmp_path: Path) -> None:
    machine = SimulatedMachine(spec, tmp_path, seed=seed)
    meter, reader = open_meters(machine.system)[0], StateReader(machine.system)
    assert meter.name == SOURCES[spec]

    def clock_s() -> float:
        return machine.now_s

    unseen_w = spec.elsewhere_w if spec.sensors.power == "rapl" else 0.0
    idle = measure_idle(meter, 3.0, sleep=machine.advance, clock_s=clock_s)
    assert idle is not None
    assert idle.power_w == pytest.approx(spec.idle_w - unseen_w, abs=idle.error_w + 0.05 * spec.idle_w)
    integrator = EnergyIntegrator(meter, idle, clock_s=clock_s)
    true_j = {}
    phases: tuple[tuple[Phase, float], ...] = (("prefill", 3.0), ("decode", 20.0))
    for phase, seconds in phases:
        integrator.mark(phase)
        before_j = machine.joules
        for _ in range(round(10 * seconds)):
            machine.advance(0.1, Doing(threads=4, phase=phase))
            integrator.sample()
        true_j[phase] = machine.joules - before_j - unseen_w * seconds
    integrator.stop()
    for phase, energy in integrator.phases().items():
        assert energy.gross_j is not None and energy.error_j is not None and energy.net_j is not None
        assert abs(energy.gross_j - true_j[phase]) <= energy.error_j + _instrument_j(
            spec, true_j[phase], energy.seconds
        )
        assert energy.gaps == energy.missed == energy.stale == 0
    decode = integrator.phases()["decode"]
    assert decode.error_j is not None and decode.error_j < 0.12 * true_j["decode"]
    state = reader.read()
    assert state.temperature_c == pytest.approx(machine.celsius, abs=1.5)
    assert state.on_battery is (True if spec.battery_wh and spec.sensors.power != "rapl" else None)


def _instrument_j(spec: MachineSpec, joules: float, seconds: float) -> float:
    """The simulated counter counts with a noise of its own, which no interval of the reader's can know: four sigma."""
    if spec.sensors.power != "rapl":
        return 0.0
    steps = seconds / STEP_S
    return 4 * 0.2 * spec.sensors.power_noise * joules / steps * math.sqrt(steps)
