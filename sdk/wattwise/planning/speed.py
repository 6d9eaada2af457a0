"""Threads and predictions: the measured rates of an engine applied to a plan that fits in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wattwise.budget import Budget
from wattwise.measured_rates import Known, RateStore
from wattwise.planning.memory import Wants
from wattwise.planning.plan import Plan
from wattwise.planning.power import power_of
from wattwise.planning.threads import candidates, fastest
from wattwise.roofline import DEFAULT_PROMPT, Power, Roofline
from wattwise_devices.machine import Machine
from wattwise_runtimes.contracts import Backend
from wattwise_runtimes.machine_speed import MachineSpeed, machine_speed
from wattwise_runtimes.workload import Workload, workload_of

MEASURED_ENGINES = ("llamacpp", "onnx")
ONE_THREAD_COUNT = ("onnx",)  # engines whose session has the same threads for prompts and tokens
_REPLY = 128

WithThreads = Callable[[Plan, int, int], Plan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Chooses thread counts by predicted time, and predicts. Without rates the plan stays as it is, and says so."""

    backend: Backend
    machine: Machine
    budget: Budget
    store: RateStore
    prompt_tokens: int | None = None
    look: Callable[..., MachineSpeed] = machine_speed

    def choose(self, made: Plan, wants: Wants, with_threads: WithThreads) -> Plan:
        """The plan with threads, prediction and the reasons for both."""
        if self.backend.name not in MEASURED_ENGINES:
            return made
        workload = workload_of(made.artifact)
        counts = sorted({*candidates(self.machine), *(n for n in (wants.threads, wants.threads_batch) if n)})
        if wants.threads and wants.threads_batch:
            counts = sorted({wants.threads, wants.threads_batch})
        known = self.store.known(self.backend.name, workload.types, made.kv_type, counts, made.artifact.weights_bytes)
        if known is None:
            return _because(made, f"speed is not predicted: {self.store.problem}")
        power = power_of(self.machine, self.backend.name)
        tries = _Tries(made, workload, known, power, self._prompt(made))
        threads, threads_batch, why = self._threads(tries, counts, wants, power)
        if (threads, threads_batch) != (made.threads, made.threads_batch):
            made = with_threads(made, threads, threads_batch)
        now = {n: self.look(n, memory_bytes=made.artifact.weights_bytes) for n in {threads, threads_batch}}
        roofline = tries.roofline(threads, threads_batch, now)
        made = dataclasses.replace(made, roofline=roofline, prediction=roofline.reply(self._prompt(made), _REPLY))
        made = dataclasses.replace(made, speeds=tuple((n, 1 / tries.decode_s(n)) for n in counts))
        return _because(made, *why)

    def _prompt(self, made: Plan) -> int:
        return self.prompt_tokens or max(1, min(DEFAULT_PROMPT, made.context - 1))

    def _threads(
        self, tries: _Tries, counts: Sequence[int], wants: Wants, power: Power | None
    ) -> tuple[int, int, list[str]]:
        """Counts to decode and to read with, and why."""
        fixed = (wants.threads, wants.threads_batch)
        if fixed[0] and fixed[1]:
            return fixed[0], fixed[1], []
        allowed = self._within_power(counts, power)
        if self.backend.name in ONE_THREAD_COUNT:
            threads = fixed[0] or fastest(allowed, tries.whole_s)
            return threads, threads, _thread_reason(tries, threads, threads, allowed)
        threads = fixed[0] or self._decoding(tries, allowed, power)
        threads_batch = fixed[1] or fastest(allowed, tries.prefill_s)
        return threads, threads_batch, _thread_reason(tries, threads, threads_batch, allowed)

    def _within_power(self, counts: Sequence[int], power: Power | None) -> Sequence[int]:
        """Counts whose watts are inside the bound, as far as watts are known; the governor sees to the rest."""
        bound = self.budget.power_w
        if bound is None or power is None:
            return counts
        watts = {n: power.watts(n) for n in counts}
        inside = [n for n, w in watts.items() if w is None or w <= bound]
        return inside or [min(counts)]

    def _decoding(self, tries: _Tries, counts: Sequence[int], power: Power | None) -> int:
        """The fastest; under a bound on energy the one that takes least, unless the fastest keeps to it."""
        best = fastest(counts, tries.decode_s)
        bound = self.budget.energy_j
        joules = {n: tries.decode_s(n) * w for n in counts if power is not None and (w := power.watts(n)) is not None}
        if bound is None or best not in joules or joules[best] <= bound:
            return best
        return min(joules, key=lambda n: joules[n])


@dataclass(frozen=True, slots=True)
class _Tries:
    """One model under different thread counts."""

    made: Plan
    workload: Workload
    known: Known
    power: Power | None
    prompt: int

    def roofline(self, threads: int, threads_batch: int, now: Mapping[int, MachineSpeed] | None = None) -> Roofline:
        return Roofline(
            workload=self.workload,
            rates=self.known.for_threads(threads),
            rates_batch=self.known.for_threads(threads_batch),
            host=self.known.host,
            threads=threads,
            threads_batch=threads_batch,
            chunk=self.made.chunk,
            speed_now=now[threads] if now is not None else None,
            speed_now_batch=now[threads_batch] if now is not None else None,
            power=self.power,
        )

    def decode_s(self, threads: int) -> float:
        return self.roofline(threads, threads).decode_s(self.prompt)

    def prefill_s(self, threads: int) -> float:
        return self.roofline(threads, threads).prefill_s(self.prompt)

    def whole_s(self, threads: int) -> float:
        return self.prefill_s(threads) + _REPLY * self.decode_s(threads)


def _thread_reason(tries: _Tries, threads: int, threads_batch: int, counts: Sequence[int]) -> list[str]:
    if len(counts) < 2:
        return [f"{counts[0]} thread is all that this process may use"] if counts[0] == 1 else []
    shown = ", ".join(f"{n}: {1 / tries.decode_s(n):.0f} tok/s" for n in counts)
    return [f"threads by the measured rates of this machine, {threads} and {threads_batch} ({shown})"]


def _because(made: Plan, *reasons: str) -> Plan:
    return dataclasses.replace(made, reasons=(*made.reasons, *reasons))
