"""From a budget and a machine to a governor: what is chosen, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.chat_model import ScriptedEngine, fake_plan
from support.simulated_machine import LAPTOP, LAPTOP_RAPL, PI5_FAN, SimulatedMachine
from wattwise.budget import Budget
from wattwise.governor.setup import governing_meters, limits_of, watch_for
from wattwise_devices.errors import PlanError
from wattwise_devices.machine import Machine, probe_machine
from wattwise_devices.meters import open_meters
from wattwise_devices.system import System


def machine_of(simulated: SimulatedMachine) -> Machine:
    return probe_machine(simulated.system)


def bare(folder: Path) -> Machine:
    return probe_machine(System(root=folder, run=lambda _: None))


def engine(adjustable: bool = True) -> ScriptedEngine:
    made = ScriptedEngine(b"x", 64)
    made.capabilities = replace(made.capabilities, threads_adjustable=adjustable)
    return made


def test_budgets_without_anything_to_watch_have_no_governor(tmp_path: Path) -> None:
    plan = replace(fake_plan(), budget=Budget(memory="1GiB", tokens_per_second=1))
    assert watch_for(plan, engine(), bare(tmp_path)) is None


def test_a_budget_becomes_limits() -> None:
    limits = limits_of(Budget(power="6 W", temperature="75 C", battery_floor="20 %"))
    assert (limits.power_w, limits.temperature_c, limits.battery_floor_percent) == (6.0, 75.0, 20.0)


@pytest.mark.parametrize("spec", [PI5_FAN, LAPTOP, LAPTOP_RAPL], ids=lambda spec: spec.name)
def test_a_watch_sees_the_machine_and_may_use_the_plans_threads(spec, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    simulated = SimulatedMachine(spec, tmp_path)
    plan = replace(fake_plan(), budget=Budget(power=5.0, temperature=70.0), threads=3, threads_batch=4)
    watch = watch_for(plan, engine(), machine_of(simulated))
    assert watch is not None
    assert [s.threads for s in watch.governor.space.decode] == [3, 2, 1]
    assert [s.threads for s in watch.governor.space.prefill] == [4, 3, 2, 1]
    assert watch.governor.controls.pace == 1.0
    fixed = watch_for(plan, engine(adjustable=False), machine_of(simulated))
    assert fixed is not None
    assert [s.threads for s in fixed.governor.space.decode] == [3]


def test_the_cap_is_on_the_widest_meter(tmp_path: Path) -> None:
    simulated = SimulatedMachine(LAPTOP, tmp_path)
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "1"), ("max_energy_range_uj", "1000000")):
        (zone / name).write_text(text + "\n")
    meters = open_meters(simulated.system)
    assert {meter.scope for meter in meters} == {"battery", "package"}
    assert governing_meters(meters)[0].scope == "battery"


@pytest.mark.parametrize(
    ("budget", "missing"),
    [
        (Budget(power=6), "power meter"),
        (Budget(temperature=70), "thermal sensor"),
        (Budget(battery_floor=20), "battery gauge"),
    ],
    ids=str,
)
def test_a_limit_without_a_sensor_is_refused_by_name(budget: Budget, missing: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=missing):
        watch_for(replace(fake_plan(), budget=budget), engine(), bare(tmp_path))
