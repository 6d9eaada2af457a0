"""Speed of one loaded engine: prompt processing and generation, in llama-bench's terms.

What is timed is `Engine.forward` on random ids, as llama-bench does: no tokenizing, no sampling, no text. `pp512` reads
512 tokens, `tg128` generates 128 one by one, `@ d4096` does so after 4096 tokens. A warm-up precedes each row.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wattwise.model import Model
from wattwise_devices.bandwidth import read_bandwidth
from wattwise_devices.energy import Energy, EnergyIntegrator
from wattwise_devices.errors import ContextOverflow
from wattwise_devices.meters.sampler import Sampler
from wattwise_devices.process_memory import reset_peak, resident_memory
from wattwise_runtimes.contracts import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One row to measure: n_prompt tokens read or n_gen generated, after n_depth tokens."""

    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0

    @property
    def name(self) -> str:
        """`pp512`, `tg128 @ d4096`."""
        kind = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{kind} @ d{self.n_depth}" if self.n_depth else kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured row. samples_ns: of each repetition. energy: of all of them and what lies between, None without a
    meter. What depth costs is in the energy, so rows with a depth have no joules per token."""

    test: Test
    samples_ns: Sequence[int]
    peak_bytes: int | None
    bandwidth_gb_s: float
    energy: Energy | None = None
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        tokens = self.test.n_prompt + self.test.n_gen
        return [1e9 * tokens / ns for ns in self.samples_ns]

    def to_json(self) -> dict[str, Any]:
        """llama-bench's field names, then energy, memory and bandwidth."""
        rates, times = self.samples_ts, list(self.samples_ns)
        tokens = self.test.n_prompt + self.test.n_gen
        gross_j = self.energy.gross_j if self.energy is not None and not self.test.n_depth else None
        joules = gross_j / (tokens * len(times)) if gross_j is not None else None
        return {
            **self.model,
            "test": self.test.name,
            "n_prompt": self.test.n_prompt,
            "n_gen": self.test.n_gen,
            "n_depth": self.test.n_depth,
            "avg_ns": round(statistics.fmean(times)),
            "stddev_ns": round(_deviation(times)),
            "avg_ts": statistics.fmean(rates),
            "stddev_ts": _deviation(rates),
            "samples_ns": times,
            "samples_ts": rates,
            "peak_bytes": self.peak_bytes,
            "read_bandwidth_gb_s": self.bandwidth_gb_s,
            "j_per_token": joules,
            "tokens_per_j": 1 / joules if joules else None,
            "avg_w": self.energy.mean_w if self.energy is not None else None,
            "energy_source": self.energy.source if self.energy is not None else None,
            "energy": self.energy.to_json() if self.energy is not None else None,
        }


def run_tests(model: Model, tests: Sequence[Test], *, repetitions: int = 5, seed: int = 0) -> Iterator[Row]:
    """Measure each test on a loaded model. Raises ContextOverflow before anything is timed if one cannot fit."""
    capacity = model.engine.kv.capacity_tokens
    for test in tests:
        needed = test.n_depth + test.n_prompt + test.n_gen
        if needed > capacity:
            raise ContextOverflow(prompt_tokens=needed, limit=capacity)
    described = describe(model)
    rng = np.random.default_rng(seed)
    for test in tests:
        bandwidth = read_bandwidth(model.plan.threads, array_bytes=64 << 20)
        reset_peak()
        _once(model, test, rng)  # warm-up
        samples, energy = _measured(model, test, rng, repetitions)
        yield Row(
            test=test,
            samples_ns=samples,
            peak_bytes=resident_memory().peak_bytes,
            bandwidth_gb_s=bandwidth,
            energy=energy,
            model=described,
        )


def describe(model: Model) -> dict[str, Any]:
    """What stays the same over all rows."""
    plan = model.plan
    return {
        "model": plan.model,
        "architecture": plan.artifact.spec.architecture,
        "quant": plan.artifact.quant,
        "model_size": plan.artifact.weights_bytes,
        "model_n_params": plan.artifact.spec.parameters(),
        "engine": plan.engine,
        "device": "cpu",
        "n_threads": plan.threads,
        "n_ubatch": plan.chunk,
        "type_kv": plan.kv_type,
        "draft": None,
    }


def _measured(model: Model, test: Test, rng: np.random.Generator, repetitions: int) -> tuple[list[int], Energy | None]:
    """Nanoseconds of each repetition, and the energy of all, where a meter exists."""
    if model.recorder is None:
        return [_once(model, test, rng) for _ in range(repetitions)], None
    integrator = EnergyIntegrator(model.recorder.meter)
    integrator.sample()
    with Sampler(integrator):
        samples = [_once(model, test, rng) for _ in range(repetitions)]
    integrator.sample()
    return samples, integrator.total()


def _once(model: Model, test: Test, rng: np.random.Generator) -> int:
    """Nanoseconds of one repetition."""
    engine, vocab = model.engine, model.engine.spec.vocab
    model.forget()
    if test.n_depth:
        engine.forward(Batch(rng.integers(0, vocab, test.n_depth), logits="none"))
    if test.n_prompt:
        batch = Batch(rng.integers(0, vocab, test.n_prompt))
        began = time.perf_counter_ns()
        engine.forward(batch)
    else:
        ids = [int(i) for i in rng.integers(0, vocab, test.n_gen)]
        began = time.perf_counter_ns()
        for token in ids:
            engine.forward(Batch([token]))
    elapsed = time.perf_counter_ns() - began
    model.forget()
    return elapsed


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
