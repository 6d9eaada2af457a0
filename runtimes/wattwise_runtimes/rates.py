"""How fast an engine really is here: measured on small synthetic models through its own `forward`.

One pass over n tokens costs: fixed + layers x (a part per layer) + weights x (a part per weight) + attention. Models
that are nearly all layers ("narrow") and models that are nearly all weights ("wide", of several sizes, because caches
make small ones faster) tell these parts apart, for every batch size and thread count. `sdk/wattwise/roofline.py` puts
them together again for a real model. Measuring takes a few seconds and belongs into a child process.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes import synthetic
from wattwise_runtimes.contracts import Backend, Batch, Engine, LoadSpec
from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME
from wattwise_runtimes.machine_speed import MachineSpeed, machine_speed
from wattwise_runtimes.spec import ModelSpec

BATCHES: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 128, 512)
FOOTPRINTS = (2 << 20, 12 << 20, 24 << 20, 48 << 20)  # bytes of weights: from a core's cache to none
_TILED_FROM = {"llamacpp": 64}  # tokens in a pass from which attention is computed in tiles; others: from 2
_OWN_SHARE = {"llamacpp": 0.5}  # of the pairs inside a batch, that tiles skip the half that is masked; others: 1
_BATCH_FOOTPRINT = 12 << 20
_NARROW_LAYERS = (2, 16)
_DEEP, _SHALLOW = 768, 4  # rows before single tokens are timed
_WARM_UPS = 3
_SAMPLE_S, _MOST_SAMPLES, _LEAST_SAMPLES = 0.08, 60, 7
_LEAST_S = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Cost of one pass over `tokens` tokens: seconds fixed, per layer, and per weight (for all its tokens)."""

    tokens: int
    fixed_s: float
    layer_s: float
    weight_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRates:
    """Of one engine, weight type, KV type and thread count on this machine.

    by_footprint: (bytes of weights, bytes read per second in decoding), the smallest first. passes: by batch size.
    attend_s, attend_batch_s: seconds of attention per operation (4 x query width x pairs of a token and a row), one
    token at a time and in tiles of many; tiled_from: tokens in a pass from which it is the latter; own_share: of the
    pairs inside a batch, how many are computed. spread: half the width between the quartiles over the median, of the
    wide model where it is widest. speed: of the machine while this was measured.
    """

    engine: str
    weight_type: str
    kv_type: str
    threads: int
    bytes_per_weight: float
    by_footprint: tuple[tuple[int, float], ...]
    passes: tuple[Pass, ...]
    attend_s: float
    attend_batch_s: float
    tiled_from: int
    own_share: float
    spread: float
    speed: MachineSpeed

    @property
    def weight_bytes_per_s(self) -> float:
        """Of the largest model that was measured: what a model beyond the caches gets."""
        return self.by_footprint[-1][1]

    @property
    def flops_per_s(self) -> float:
        """Of matrix products in the largest batch (two operations per weight and token)."""
        widest = self.passes[-1]
        return 2 * widest.tokens / widest.weight_s

    @property
    def fixed_s(self) -> float:
        """Of a pass over one token, whatever the model."""
        return self.passes[0].fixed_s

    @property
    def by_batch(self) -> dict[int, float]:
        """Batch size -> seconds per weight."""
        return {p.tokens: p.weight_s for p in self.passes}

    def attention_s(self, spec: ModelSpec, tokens: int, depth: float) -> float:
        """Of a pass over `tokens` tokens after `depth` others, all layers together."""
        seconds = self.attend_batch_s if tokens >= self.tiled_from else self.attend_s
        return seconds * attention_work(spec, tokens, depth, self.own_share)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EngineRates:
        """Raises CorruptArtifact for anything but what `to_json` wrote."""
        try:
            fields = {f.name for f in dataclasses.fields(cls)}
            if set(data) != fields:
                raise ValueError(f"fields {sorted(set(data) ^ fields)}")
            made = cls(
                **{
                    **data,
                    "by_footprint": tuple((int(b), float(r)) for b, r in data["by_footprint"]),
                    "passes": tuple(Pass(**p) for p in data["passes"]),
                    "speed": MachineSpeed(**data["speed"]),
                }
            )
            numbers = [made.attend_s, made.attend_batch_s, made.spread, *(r for _, r in made.by_footprint)]
            numbers += [x for p in made.passes for x in (p.fixed_s, p.layer_s, p.weight_s)]
            if not made.passes or not made.by_footprint or not all(n >= 0 for n in numbers):
                raise ValueError("a rate that is not a number")
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CorruptArtifact("measured rates", "entry", str(error), "what was written by this version") from error
        return made


def measure_rates(
    backend: Backend,
    weight_type: str,
    threads: int,
    *,
    kv_type: str | None = None,
    make: synthetic.Maker = synthetic.write_synthetic_gguf,
    most_bytes: int | None = None,
) -> EngineRates:
    """Measure one backend with one weight type and thread count. make: writes models in the backend's format.

    most_bytes: no model of more bytes is tried (the smallest always is). A few seconds; loads engines in this process.
    """
    return measure_all(backend, weight_type, [threads], kv_type=kv_type, make=make, most_bytes=most_bytes)[0]


def measure_all(
    backend: Backend,
    weight_type: str,
    thread_counts: Sequence[int],
    *,
    kv_type: str | None = None,
    make: synthetic.Maker = synthetic.write_synthetic_gguf,
    most_bytes: int | None = None,
) -> list[EngineRates]:
    """`measure_rates` for several thread counts; the models are made once."""
    capability = backend.probe()
    kv = kv_type or (capability.kv_types[0] if capability and "f16" not in capability.kv_types else "f16")
    bytes_per_weight, multiple = weight_size(weight_type)
    narrow_type = weight_type if synthetic.NARROW_WIDTH % multiple == 0 else "q8_0"
    sizes = [size for size in FOOTPRINTS if most_bytes is None or size <= most_bytes] or [FOOTPRINTS[0]]
    wide = [synthetic.wide_spec(size, bytes_per_weight, multiple) for size in sizes]
    with tempfile.TemporaryDirectory(prefix="wattwise-rates-") as name:
        folder = Path(name)
        narrow = [make(synthetic.narrow_spec(n), narrow_type, folder) for n in _NARROW_LAYERS]
        models = [make(spec, weight_type, folder) for spec in wide]
        out = []
        for threads in thread_counts:
            speed = machine_speed(threads, memory_bytes=sizes[-1])
            timed: list[_Timed] = []
            for artifact in [*narrow, *models]:
                timed.append(_Timed.of(backend, artifact, threads, kv))
                speed = speed.better(machine_speed(threads, memory_bytes=sizes[-1]))
            made = _Solve(backend.name, timed[:2], timed[2:], bytes_per_weight)
            out.append(
                EngineRates(
                    engine=backend.name,
                    weight_type=weight_type,
                    kv_type=kv,
                    threads=threads,
                    bytes_per_weight=bytes_per_weight,
                    by_footprint=made.by_footprint(),
                    passes=tuple(made.passes()),
                    attend_s=made.attend_s,
                    attend_batch_s=made.attend_batch_s,
                    tiled_from=made.tiled_from,
                    own_share=made.own_share,
                    spread=max(t.spread for t in timed[2:]),
                    speed=speed,
                )
            )
    return out


_ONNX_SIZES = {"fp32": 4.0, "fp16": 4.0, "int8": 1.125, "int4": 0.625, "int2": 0.375}  # as read: fp16 is widened


def weight_size(weight_type: str) -> tuple[float, int]:
    """(bytes per weight as an engine reads them, what row lengths must be a multiple of)."""
    if weight_type in _ONNX_SIZES:
        return _ONNX_SIZES[weight_type], 32
    kind = TYPE_BY_NAME[weight_type]
    return kind.block_bytes / kind.block, kind.block


def matrix_weights(spec: ModelSpec) -> int:
    """Weights that one pass multiplies with: every matrix, the head included, the embedding table not."""
    shapes = spec.tensor_shapes()
    count = sum(s[0] * s[1] for name, s in shapes.items() if len(s) == 2 and not name.startswith(_TABLES))
    return count + (spec.vocab * spec.hidden if spec.tied_head else 0)


_TABLES = ("token_embd", "position_embd")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    """Seconds measured on one model: by batch size, deep in the text, and a second wide batch after the first.

    depth: rows held, on average, when single tokens were timed.
    """

    spec: ModelSpec
    depth: float
    by_batch: dict[int, float]
    deep_s: float | None
    second_s: float | None
    spread: float

    @classmethod
    def of(cls, backend: Backend, artifact: Any, threads: int, kv_type: str) -> _Timed:
        """Load, measure, close. Wide models beyond the batch footprint are only decoded."""
        spec: ModelSpec = artifact.spec
        is_narrow = spec.name == "synthetic-narrow"
        is_batched = is_narrow or artifact.weights_bytes <= 1.5 * _BATCH_FOOTPRINT
        batches = BATCHES if is_batched else (1,)
        load = LoadSpec(context=spec.context, chunk=512, kv_type=kv_type, threads=threads, threads_batch=threads)
        with _loaded(backend, artifact, load) as engine:
            clock_s = _clock(threads)
            samples = _decode_samples(engine, 0, clock_s)
            by_batch: dict[int, float] = {1: statistics.median(samples)}
            for n in batches[1:]:
                by_batch[n] = statistics.median(_batch_samples(engine, n, 3 if n < 512 else 2, 0, clock_s))
            deep_s = second_s = None
            if spec.layers == max(_NARROW_LAYERS) and is_narrow:
                deep_s = statistics.median(_decode_samples(engine, _DEEP, clock_s))
                second_s = statistics.median(_batch_samples(engine, 512, 2, 512, clock_s))
        first, _, third = statistics.quantiles(samples, n=4)
        return cls(
            spec=spec,
            depth=_SHALLOW + _WARM_UPS + len(samples) / 2,
            by_batch=by_batch,
            deep_s=deep_s,
            second_s=second_s,
            spread=(third - first) / 2 / statistics.median(samples),
        )


@contextmanager
def _loaded(backend: Backend, artifact: Any, load: LoadSpec) -> Iterator[Engine]:
    engine = backend.load(artifact, load)
    try:
        yield engine
    finally:
        engine.close()


def _clock(threads: int) -> Callable[[], float]:
    """Seconds. One thread's work is timed by the processor's time, which other processes do not stretch."""
    return time.process_time if threads == 1 else time.perf_counter


def _decode_samples(engine: Engine, depth: int, clock_s: Callable[[], float]) -> list[float]:
    """Seconds of single tokens after `depth` others."""
    engine.kv.clear()
    engine.forward(Batch(_ids(max(_SHALLOW, depth)), logits="none"))
    for _ in range(_WARM_UPS):
        engine.forward(Batch([5]))
    samples: list[float] = []
    while len(samples) < _LEAST_SAMPLES or (sum(samples) < _SAMPLE_S and len(samples) < _MOST_SAMPLES):
        began = clock_s()
        engine.forward(Batch([5]))
        samples.append(clock_s() - began)
    return samples


def _batch_samples(engine: Engine, n: int, repeats: int, depth: int, clock_s: Callable[[], float]) -> list[float]:
    """Seconds of batches of n tokens after `depth` others, each into an empty cache, after one that is not counted."""
    samples: list[float] = []
    for _ in range(repeats + 1):
        engine.kv.clear()
        if depth:
            engine.forward(Batch(_ids(depth), logits="none"))
        began = clock_s()
        engine.forward(Batch(_ids(n)))
        samples.append(clock_s() - began)
    return samples[1:]


def _ids(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, synthetic.VOCAB, n)


def attention_work(spec: ModelSpec, tokens: int, depth: float, own_share: float) -> float:
    """Operations of attention in a pass over `tokens` tokens after `depth` others, all layers together."""
    pairs = tokens * depth + (1 if tokens == 1 else own_share * tokens * tokens)
    return 4 * spec.heads * spec.head_dim * spec.layers * pairs


class _Solve:
    """From times of whole models to the parts they consist of."""

    def __init__(self, engine: str, narrow: Sequence[_Timed], wide: Sequence[_Timed], bytes_per_weight: float) -> None:
        self._wide, self._bytes_per_weight = wide, bytes_per_weight
        self._thin, self._tall = narrow
        self.tiled_from, self.own_share = _TILED_FROM.get(engine, 2), _OWN_SHARE.get(engine, 1.0)
        self.attend_s, self.attend_batch_s = self._attention()
        self._weight_s = dict.fromkeys(BATCHES, 0.0)
        for _ in range(4):  # the few weights of the narrow models are taken off with what the wide ones say, and back
            self._layers = {n: self._layer(n) for n in BATCHES}
            self._weight_s = {n: self._per_weight(self._batched(), n) for n in BATCHES}

    def passes(self) -> Iterable[Pass]:
        """By batch size."""
        for n in BATCHES:
            fixed_s, layer_s = self._layers[n]
            yield Pass(tokens=n, fixed_s=fixed_s, layer_s=layer_s, weight_s=self._weight_s[n])

    def by_footprint(self) -> tuple[tuple[int, float], ...]:
        """(bytes of weights, bytes per second) of every wide model in decoding."""
        out = []
        for timed in self._wide:
            nbytes = matrix_weights(timed.spec) * self._bytes_per_weight
            out.append((round(nbytes), self._bytes_per_weight / self._per_weight(timed, 1)))
        return tuple(out)

    def _batched(self) -> _Timed:
        """The largest wide model of which all batch sizes were timed."""
        return [t for t in self._wide if len(t.by_batch) == len(BATCHES)][-1]

    def _attention(self) -> tuple[float, float]:
        """From the same model at two depths: nothing else differs."""
        tall = self._tall
        assert tall.deep_s is not None and tall.second_s is not None
        deeper = attention_work(tall.spec, 1, _DEEP, 1) - attention_work(tall.spec, 1, _SHALLOW, 1)
        many = attention_work(tall.spec, 512, 512, 1) - attention_work(tall.spec, 512, 0, 1)
        one_s = max(_LEAST_S, tall.deep_s - tall.by_batch[1]) / deeper
        return one_s, max(_LEAST_S, tall.second_s - tall.by_batch[512]) / many

    def _attention_s(self, timed: _Timed, n: int) -> float:
        """Of a pass over n tokens as it was timed: batches went into an empty cache."""
        seconds = self.attend_batch_s if n >= self.tiled_from else self.attend_s
        return seconds * attention_work(timed.spec, n, timed.depth if n == 1 else 0, self.own_share)

    def _layer(self, n: int) -> tuple[float, float]:
        """(fixed seconds, seconds per layer) of a pass over n tokens."""

        def bare(timed: _Timed) -> float:
            spent = self._attention_s(timed, n) + matrix_weights(timed.spec) * self._weight_s[n]
            return max(_LEAST_S, timed.by_batch[n] - spent)

        thin, tall = bare(self._thin), bare(self._tall)
        layer_s = max(0.0, (tall - thin) / (self._tall.spec.layers - self._thin.spec.layers))
        return max(0.0, thin - layer_s * self._thin.spec.layers), layer_s

    def _per_weight(self, timed: _Timed, n: int) -> float:
        fixed_s, layer_s = self._layers[n]
        left = timed.by_batch[n] - fixed_s - layer_s * timed.spec.layers - self._attention_s(timed, n)
        return max(left, 0.1 * timed.by_batch[n]) / matrix_weights(timed.spec)
