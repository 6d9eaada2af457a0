"""Bounds beside memory: whether they can be watched here at all, and whether a plan keeps to them.

What cannot be kept or watched is refused before anything is loaded, saying what is missing; a plan that is too slow
or takes too much is refused with the nearest ones that are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from wattwise.budget import Budget
from wattwise.planning.nearest import faster_plans, longest_prompt
from wattwise.planning.plan import Plan
from wattwise.planning.sensors import idle_watts, machine_state, power_meters
from wattwise.roofline import Prediction
from wattwise_devices.errors import BudgetError, PlanError, PowerBudgetError
from wattwise_devices.machine import Machine


def check_can_be_watched(budget: Budget, machine: Machine) -> None:
    """Raise PowerBudgetError or PlanError for a bound that nothing here can measure."""
    if budget.power_w is not None:
        found, reasons = power_meters(machine)
        if not found:
            raise PowerBudgetError(
                f"a power bound of {budget.power_w:g} W cannot be kept: nothing here measures power, and no profile of "
                f"this device tells its watts ({'; '.join(reasons)}). Leave the bound out, or see: wattwise devices",
                allowed=budget.power_w,
            )
        idle_w = idle_watts(machine)
        if idle_w is not None and idle_w >= budget.power_w:
            raise PowerBudgetError(
                f"a power bound of {budget.power_w:g} W cannot be kept: the device takes about {idle_w:g} W with "
                "nothing running",
                needed=idle_w,
                allowed=budget.power_w,
                would_fit=[f"--power {1.25 * idle_w:.1f}W or more"],
            )
    if budget.temperature_c is not None and machine_state(machine).temperature_c is None:
        raise PlanError(
            f"a temperature bound of {budget.temperature_c:g} °C cannot be kept: no temperature can be read here",
            clash=("temperature bound", "no temperature sensor"),
        )
    if budget.battery_floor_percent is not None and machine_state(machine).battery_percent is None:
        raise PlanError(
            f"a battery floor of {budget.battery_floor_percent:g} % cannot be kept: no battery can be read here",
            clash=("battery floor", "no battery"),
        )


def check_speed_and_energy(made: Plan) -> Plan:
    """The plan itself, or BudgetError with what would fit."""
    budget, prediction = made.budget, made.prediction
    wanted = [
        name
        for name, bound in (
            ("ttft_ms", budget.ttft_ms),
            ("tokens_per_second", budget.tokens_per_second),
            ("energy", budget.energy),
        )
        if bound is not None
    ]
    if not wanted:
        return made
    if prediction is None:
        why = next((r for r in made.reasons if r.startswith("speed is not predicted")), "")
        raise PlanError(
            f"a bound on {' and '.join(wanted)} needs a prediction of speed, and there is none for the {made.engine} "
            f"engine here. {why}".rstrip()
        )
    for error in _broken(made, budget, prediction):
        raise error
    return made


def _broken(made: Plan, budget: Budget, prediction: Prediction) -> Iterator[BudgetError]:
    ttft, speed = prediction.ttft_ms, prediction.tokens_per_second
    if budget.longest_ttft_ms is not None and ttft.value > budget.longest_ttft_ms:
        fits = [f"--ttft {math.ceil(1.01 * ttft.value)}ms"]
        prompt = longest_prompt(made, budget.longest_ttft_ms)
        if prompt:
            fits.insert(0, f"a prompt of at most {prompt} tokens")
        fits += faster_plans(made, lambda p: p.ttft_ms.value <= (budget.longest_ttft_ms or 0), "ttft")
        yield BudgetError(
            f"{made.model} on {made.engine}: the first token of a prompt of {prediction.prompt_tokens} is predicted "
            f"after {ttft.value:.0f} ms ({ttft.low:.0f} to {ttft.high:.0f}); allowed: {budget.longest_ttft_ms:g} ms. "
            f"Fits: {'; or '.join(fits)}.",
            needed=ttft.value,
            allowed=budget.longest_ttft_ms,
            would_fit=fits,
        )
    least = budget.least_tokens_per_second
    if least is not None and speed.value < least:
        fits = [f"--tokens-per-second {0.99 * speed.value:.4g}"]
        fits += faster_plans(made, lambda p: p.tokens_per_second.value >= least, "speed")
        yield BudgetError(
            f"{made.model} on {made.engine} is predicted to make {speed.value:.1f} tokens per second "
            f"({speed.low:.1f} to {speed.high:.1f}) on {made.threads} threads; asked for: {least:g}. "
            f"Fits: {'; or '.join(fits)}.",
            needed=speed.value,
            allowed=least,
            would_fit=fits,
        )
    if budget.energy_j is not None:
        yield from _energy(made, budget.energy_j, prediction)


def _energy(made: Plan, bound_j: float, prediction: Prediction) -> Iterator[BudgetError]:
    joules = prediction.j_per_token
    if joules is None:
        yield PowerBudgetError(
            f"a bound of {bound_j:g} J per token cannot be planned for: no power is known here, neither measured in an "
            "earlier reply nor from a profile of this device. Leave the bound out, or see: wattwise devices",
            allowed=bound_j,
        )
    elif joules.value > bound_j:
        fits = [f"--energy {1.01 * joules.value:.4g}J"]
        fits += faster_plans(made, lambda p: p.j_per_token is not None and p.j_per_token.value <= bound_j, "energy")
        yield PowerBudgetError(
            f"{made.model} on {made.engine} is predicted to take {joules.value:.3g} J per token ({joules.low:.3g} to "
            f"{joules.high:.3g}; {prediction.power_source}); allowed: {bound_j:g} J. Fits: {'; or '.join(fits)}.",
            needed=joules.value,
            allowed=bound_j,
            would_fit=fits,
        )
