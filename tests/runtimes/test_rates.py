"""Rates: an engine with known costs and a clock of its own, whose parts have to be found again; and one real look."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes import machine_speed, rates
from wattwise_runtimes.contracts import Artifact, Batch, Capability, LoadSpec
from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME
from wattwise_runtimes.rates import EngineRates, measure_rates, weight_size
from wattwise_runtimes.spec import ModelSpec
from wattwise_runtimes.synthetic import narrow_spec, wide_spec

FIXED_S, LAYER_S, LAYER_TOKEN_S = 20e-6, 8e-6, 2e-6
BYTES_PER_S, TOKEN_WEIGHT_S = 20e9, 4e-12  # reading the weights once, and computing for every token
ATTEND_S, ATTEND_TILED_S = 80e-12, 25e-12


class KnownEngine:
    """Computes nothing; each forward moves the clock by what the formula says."""

    def __init__(self, artifact: Artifact, clock: list[float]) -> None:
        self.spec, self._clock, self._held = artifact.spec, clock, 0
        self.kv: Any = self
        shapes = self.spec.tensor_shapes()
        self._weights = sum(math.prod(s) for name, s in shapes.items() if len(s) == 2)  # tied: the table is the head
        self._bytes = self._weights * weight_size(artifact.quant)[0]

    def clear(self) -> None:
        self._held = 0

    def close(self) -> None:
        pass

    def forward(self, batch: Batch) -> np.ndarray:
        n, held, layers = len(batch.tokens), self._held, self.spec.layers
        pairs = held + 1 if n == 1 else n * held + n * n / 2
        attend = ATTEND_TILED_S if n >= 64 else ATTEND_S
        weights_s = max(self._bytes / BYTES_PER_S, TOKEN_WEIGHT_S * self._weights * n)
        layers_s = layers * (LAYER_S + LAYER_TOKEN_S * n)
        attention_s = attend * 4 * self.spec.heads * self.spec.head_dim * layers * pairs
        self._clock[0] += FIXED_S + layers_s + weights_s + attention_s
        self._held += n
        return np.zeros((1, 1), np.float32)


class KnownBackend:
    name = "llamacpp"

    def __init__(self) -> None:
        self.clock = [0.0]
        self.loads: list[LoadSpec] = []

    def probe(self) -> Capability:
        return Capability(name=self.name, version="0", formats=("gguf",), kv_types=("f16",))

    def load(self, artifact: Artifact, spec: LoadSpec) -> Any:
        self.loads.append(spec)
        return KnownEngine(artifact, self.clock)


def make(spec: ModelSpec, weight_type: str, folder: Path) -> Artifact:
    weights = sum(math.prod(s) for s in spec.tensor_shapes().values() if len(s) == 2)
    nbytes = round(weights * weight_size(weight_type)[0])
    return Artifact(path=folder, format="gguf", spec=spec, weights_bytes=nbytes, quant=weight_type)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> EngineRates:
    backend: Any = KnownBackend()
    monkeypatch.setattr(rates.time, "perf_counter", lambda: backend.clock[0])
    quick = machine_speed.MachineSpeed(threads=3, cache_best_gb_s=80.0, cache_mean_gb_s=80.0, memory_gb_s=30.0)
    monkeypatch.setattr(rates, "machine_speed", lambda threads, memory_bytes: quick)
    made = measure_rates(backend, "q4_0", 3, make=make)
    assert {spec.threads for spec in backend.loads} == {spec.threads_batch for spec in backend.loads} == {3}
    return made


def test_the_parts_of_a_known_engine_are_found_again(measured: EngineRates) -> None:
    assert measured.weight_bytes_per_s == pytest.approx(BYTES_PER_S, rel=0.02)
    assert all(rate == pytest.approx(BYTES_PER_S, rel=0.05) for _, rate in measured.by_footprint)
    assert measured.fixed_s == pytest.approx(FIXED_S, rel=0.1)
    assert measured.passes[0].layer_s == pytest.approx(LAYER_S + LAYER_TOKEN_S, rel=0.05)
    assert measured.attend_s == pytest.approx(ATTEND_S, rel=0.02)
    assert measured.attend_batch_s == pytest.approx(ATTEND_TILED_S, rel=0.02)
    assert measured.by_batch[512] == pytest.approx(512 * TOKEN_WEIGHT_S, rel=0.03)
    assert measured.flops_per_s == pytest.approx(2 / TOKEN_WEIGHT_S, rel=0.03)
    assert measured.spread < 0.05  # attention grows from token to token


def test_rates_survive_json_and_nothing_else_does(measured: EngineRates) -> None:
    data = json.loads(json.dumps(measured.to_json()))
    assert EngineRates.from_json(data) == measured
    for change in ({"spread": -1.0}, {"passes": []}, {"by_footprint": [[1, "fast"]]}, {"speed": {}}, {"more": 1}):
        with pytest.raises(CorruptArtifact):
            EngineRates.from_json({**data, **change})


@pytest.mark.parametrize("name", ["f32", "q4_0", "q8_0", "q4_k", "q1_0", "iq4_xs", "int4", "int2"])
@pytest.mark.parametrize("nbytes", [2 << 20, 48 << 20])
def test_synthetic_models_have_the_size_asked_for(name: str, nbytes: int) -> None:
    per_weight, multiple = weight_size(name)
    spec = wide_spec(nbytes, per_weight, multiple)
    assert make(spec, name, Path()).weights_bytes == pytest.approx(nbytes, rel=0.25)
    assert all(s[1] % multiple == 0 for s in spec.tensor_shapes().values() if len(s) == 2)
    assert narrow_spec(2).heads % narrow_spec(2).kv_heads == 0


@pytest.mark.llama
@pytest.mark.parametrize("name", ["q4_0", "q6_k", "f16"])
def test_a_synthetic_file_is_what_it_says(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from wattwise_runtimes.artifact import open_artifact
    from wattwise_runtimes.synthetic import write_synthetic_gguf
    from wattwise_runtimes.workload import workload_of

    per_weight, multiple = weight_size(name)
    spec = wide_spec(1 << 20, per_weight, multiple)
    opened = open_artifact(write_synthetic_gguf(spec, name, tmp_path).path)
    assert (opened.quant, opened.spec.layers, opened.spec.hidden) == (name, spec.layers, spec.hidden)
    matrices = sum(math.prod(s) for s in spec.tensor_shapes().values() if len(s) == 2)
    assert workload_of(opened).weights == ((name, matrices),)


@pytest.mark.llama
def test_rows_that_blocks_do_not_divide_are_refused() -> None:
    pytest.importorskip("llama_cpp")
    from wattwise_runtimes.engines.llamacpp.ggml import quantise_rows

    with pytest.raises(ValueError, match="256"):
        quantise_rows(np.zeros((1, 128), np.float32), TYPE_BY_NAME["q4_k"])


@pytest.mark.llama
def test_a_real_measurement_is_plausible() -> None:
    pytest.importorskip("llama_cpp")
    from wattwise_runtimes.registry import get_backend

    made = measure_rates(get_backend("llamacpp"), "q8_0", 1, most_bytes=2 << 20)
    assert 1e8 < made.weight_bytes_per_s < 1e12
    assert 1e8 < made.flops_per_s < 1e13
    assert 0 <= made.fixed_s < 0.1 and made.attend_s > 0
    assert [p.tokens for p in made.passes] == list(rates.BATCHES)
    assert EngineRates.from_json(made.to_json()) == made


def test_a_look_at_the_machine_is_short_and_positive() -> None:
    speed = machine_speed.machine_speed(1, memory_bytes=24 << 20)
    assert 0 < speed.cache_mean_gb_s <= speed.cache_best_gb_s
    assert speed.memory_gb_s is not None and speed.memory_gb_s > 0
    assert machine_speed.machine_speed(1).memory_gb_s is None
