"""From a plan and a loaded engine to a watched model: which meters, which controls, or none at all."""

from __future__ import annotations

from collections.abc import Sequence

from wattwise.budget import Budget
from wattwise.governor.controls import ControlSpace, Limits
from wattwise.governor.governor import Governor
from wattwise.governor.pilot import Watch
from wattwise.planning import Plan
from wattwise_devices.errors import PlanError
from wattwise_devices.machine import Machine
from wattwise_devices.meters import Meter, StateReader, open_meters
from wattwise_runtimes.contracts import Engine

# The cap is on the widest thing that is measured; a graphics card's meter says nothing of work on the processor.
_WIDEST_FIRST = ("board", "battery", "package", "rail", "process")


def governing_meters(meters: Sequence[Meter]) -> list[Meter]:
    """Those whose watts a cap can be held against: the widest scope first, estimates last."""
    usable = [meter for meter in meters if meter.scope in _WIDEST_FIRST]
    return sorted(usable, key=lambda meter: (meter.estimated, _WIDEST_FIRST.index(meter.scope)))


def limits_of(budget: Budget) -> Limits:
    """The part of a budget that has to be watched while a reply is made."""
    return Limits(
        power_w=budget.power_w,
        temperature_c=budget.temperature_c,
        battery_floor_percent=budget.battery_floor_percent,
    )


def watch_for(plan: Plan, engine: Engine, machine: Machine) -> Watch | None:
    """A watch over a loaded engine; None where the budget has nothing to watch.

    Raises PlanError for a limit whose sensor is missing (a plan refuses that earlier; sensors may go in between).
    """
    if not plan.budget.is_governed:
        return None
    limits = limits_of(plan.budget)
    meters = governing_meters(open_meters(machine.system, machine.profile))
    reader = StateReader(machine.system)
    state = reader.read()
    missing = [
        (f"power {limits.power_w} W", "a power meter", limits.power_w is not None and not meters),
        (
            f"temperature {limits.temperature_c} °C",
            "a thermal sensor",
            limits.temperature_c is not None and state.temperature_c is None,
        ),
        (
            f"battery floor {limits.battery_floor_percent} %",
            "a battery gauge",
            limits.battery_floor_percent is not None and state.battery_percent is None,
        ),
    ]
    for asked, sensor, is_missing in missing:
        if is_missing:
            raise PlanError(
                f"{asked} cannot be kept: this machine shows no {sensor.split(' ', 1)[1]}. See what it has with: "
                "wattwise devices",
                clash=(asked, f"no {sensor.split(' ', 1)[1]}"),
            )
    space = ControlSpace.of_threads(
        plan.threads,
        plan.threads_batch,
        adjustable=engine.capabilities.threads_adjustable,
        rates={n: speed for n, speed in plan.speeds if n <= plan.threads},
    )
    governor = Governor(
        limits, space, idle_w=_idle_w(meters, machine), rates_hz={meter.name: meter.rate_hz for meter in meters}
    )
    return Watch(governor, engine, meters, reader.read)


def _idle_w(meters: Sequence[Meter], machine: Machine) -> float | None:
    """A profile's idle watts are of the whole board; they say nothing about a narrower meter's."""
    if not meters or meters[0].scope not in ("board", "battery") or machine.profile is None:
        return None
    return machine.profile.idle_w
