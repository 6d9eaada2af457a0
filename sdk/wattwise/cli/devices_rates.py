"""The engines' measured rates, for `wattwise devices`: what is known of this machine, or measured afresh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wattwise.measured_rates import RateStore
from wattwise.planning.threads import candidates
from wattwise_devices.errors import BackendUnavailable
from wattwise_devices.machine import Machine
from wattwise_runtimes.rates import FOOTPRINTS, EngineRates
from wattwise_runtimes.registry import get_backend

_TYPES = {"llamacpp": ("q4_0", "q4_k", "q8_0", "f16"), "onnx": ("int4", "int8", "fp32")}
_KV_TYPES = {"llamacpp": "f16", "onnx": "f32"}


def look_at_rates(machine: Machine, *, measure: bool) -> tuple[list[EngineRates], list[str]]:
    """Rates, and what could not be measured. measure: the common weight types of every engine here, about a minute."""
    store, problems = RateStore(machine, afresh=measure), []
    for engine, types in _TYPES.items() if measure else ():
        try:
            get_backend(engine)
        except BackendUnavailable as error:
            problems.append(str(error))
            continue
        if store.known(engine, types, _KV_TYPES[engine], candidates(machine), FOOTPRINTS[-1]) is None:
            problems.append(f"{engine}: {store.problem}")
    return store.stored(), problems


def rates_json(rates: Sequence[EngineRates]) -> list[dict[str, Any]]:
    """One object for each, with the figures that people ask for beside the measured parts."""
    return [{**r.to_json(), "weight_bytes_per_s": r.weight_bytes_per_s, "flops_per_s": r.flops_per_s} for r in rates]


def rates_text(rates: Sequence[EngineRates], problems: Sequence[str]) -> list[str]:
    """A table: reading weights for one token, computing for 2 to 32 and for 512."""
    if not rates and not problems:
        return ["rates    of the engines: not measured yet (wattwise devices --rates, or the first plan)"]
    lines = [f"rates    {problem}" for problem in problems]
    if rates:
        lines.append("rates    engine    weights threads  GB/s  GFLOP/s at 2, 8, 32, 512 tokens")
    for r in sorted(rates, key=lambda r: (r.engine, r.weight_type, r.threads)):
        flops = {n: 2 * n / seconds / 1e9 for n, seconds in r.by_batch.items() if seconds > 0}
        shown = ", ".join(f"{flops[n]:.0f}" if n in flops else "n/a" for n in (2, 8, 32, 512))
        lines.append(
            f"         {r.engine:<9} {r.weight_type:<7} {r.threads:>7} {r.weight_bytes_per_s / 1e9:>5.1f}  {shown}"
        )
    return lines
