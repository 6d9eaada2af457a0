"""Shared by the benchmarks: random models of real size, and measurements that alternate.

Machines are noisy and clocks drift, so two things are only compared when they were measured in turns in one run;
what is reported is the ratio within each round, its median and its spread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from wattwise_devices.bandwidth import read_bandwidth
from wattwise_runtimes.contracts import Artifact
from wattwise_runtimes.spec import ModelSpec, RopeSpec

_BLOCK_DTYPES = {
    "q4_0": np.dtype([("scale", "<f2"), ("codes", "u1", 16)]),
    "q8_0": np.dtype([("scale", "<f2"), ("codes", "i1", 32)]),
}
_CODE_STD = {"q4_0": 4.6, "q8_0": 73.9}  # of uniform codes -8..7 and -128..127
_ROWS_AT_ONCE = 4096

SIZES: dict[str, ModelSpec] = {
    "60M": ModelSpec(
        architecture="llama", layers=8, hidden=640, heads=10, kv_heads=5, head_dim=64, ffn=1792, vocab=16000,
        context=4096, rope=RopeSpec(dims=64), name="random-60M",
    ),
    "400M": ModelSpec(
        architecture="llama", layers=24, hidden=1024, heads=16, kv_heads=8, head_dim=64, ffn=4096, vocab=32000,
        context=8192, rope=RopeSpec(dims=64), name="random-400M",
    ),
}  # fmt: skip


def write_random_gguf(path: Path, spec: ModelSpec, quant: str = "q4_0", seed: int = 0) -> Artifact:
    """A llama-architecture GGUF of random weights with sane scales, written a few rows at a time, no vocabulary."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(spec.layers)
    writer.add_context_length(spec.context)
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(spec.ffn)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_vocab_size(spec.vocab)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_tokenizer_model("no_vocab")
    shapes = spec.tensor_shapes()
    kinds = {name: GGMLQuantizationType[quant.upper() if len(s) == 2 else "F32"] for name, s in shapes.items()}
    total = 0
    for name, shape in shapes.items():
        block, block_bytes = GGML_QUANT_SIZES[kinds[name]]
        nbytes = int(np.prod(shape)) // block * block_bytes
        stored = (*shape[:-1], shape[-1] // block * block_bytes) if block > 1 else shape
        dtype = np.dtype(np.uint8) if block > 1 else np.dtype(np.float16 if kinds[name].name == "F16" else np.float32)
        writer.add_tensor_info(name, stored, dtype, nbytes, raw_dtype=kinds[name] if block > 1 else None)
        total += nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for shape in shapes.values():
        _write_tensor(writer, rng, shape, quant)
    writer.close()
    return Artifact(path=path, format="gguf", spec=spec, weights_bytes=total, quant=quant)


def _write_tensor(writer: gguf.GGUFWriter, rng: np.random.Generator, shape: tuple[int, ...], quant: str) -> None:
    if len(shape) == 1:
        writer.write_tensor_data(np.ones(shape, np.float32))
        return
    parts = [
        _random_rows(rng, min(_ROWS_AT_ONCE, shape[0] - start), shape[1], quant)
        for start in range(0, shape[0], _ROWS_AT_ONCE)
    ]
    writer.write_tensor_data(np.concatenate(parts))


def _random_rows(rng: np.random.Generator, rows: int, columns: int, quant: str) -> np.ndarray:
    std = 1 / np.sqrt(columns)
    if quant in ("f16", "f32"):
        return (std * rng.standard_normal((rows, columns), np.float32)).astype(quant.replace("f", "float"))
    blocks = np.empty((rows, columns // 32), _BLOCK_DTYPES[quant])
    blocks["scale"] = std / _CODE_STD[quant]
    codes = np.frombuffer(rng.bytes(blocks["codes"].size), blocks["codes"].dtype)
    blocks["codes"] = codes.reshape(blocks["codes"].shape)
    return blocks.view(np.uint8).reshape(rows, -1)


@contextmanager
def model_folder(keep: Path | None) -> Iterator[Path]:
    """A folder for generated models: the one given, or a temporary one."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="wattwise-bench-") as folder:
        yield Path(folder)


@dataclass(frozen=True, slots=True)
class Contender:
    """One thing to measure. run() does one measurement and answers with its figure, larger is better."""

    name: str
    run: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A contender against the base, from the ratios within each round."""

    name: str
    median: float
    first: float  # quartile
    third: float
    low: float
    high: float


def alternate(contenders: Sequence[Contender], rounds: int) -> dict[str, list[float]]:
    """Every contender once per round, the order rotating, after one unmeasured round to warm up."""
    for contender in contenders:
        contender.run()
    figures: dict[str, list[float]] = {c.name: [] for c in contenders}
    for turn in range(rounds):
        shift = turn % len(contenders)
        for contender in [*contenders[shift:], *contenders[:shift]]:
            figures[contender.name].append(contender.run())
    return figures


def ratios(figures: dict[str, list[float]], base: str) -> list[Ratio]:
    """Each contender's figure over the base's of the same round."""
    out: list[Ratio] = []
    for name, values in figures.items():
        quotients = [value / other for value, other in zip(values, figures[base], strict=True)]
        first, median, third = statistics.quantiles(quotients, n=4, method="inclusive")
        out.append(Ratio(name, median, first, third, min(quotients), max(quotients)))
    return out


def common_arguments(description: str) -> argparse.ArgumentParser:
    """Options that all decode benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=sorted(SIZES), default="400M")
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="decoded per measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", type=Path, default=None, help="folder to keep generated models in")
    return parser


def run_decode_benchmark(
    description: str,
    contenders: Callable[[Artifact, argparse.Namespace], tuple[list[Contender], list[Callable[[], object]]]],
) -> None:
    """Make the model, measure the contenders in turns, print each one's speed and its ratio to the first.

    contenders: gives the things to measure, the base first, and what to call at the end.
    """
    arguments = common_arguments(description).parse_args()
    with model_folder(arguments.keep) as folder:
        path = folder / f"random-{arguments.size}-{arguments.quant}.gguf"
        artifact = write_random_gguf(path, SIZES[arguments.size], arguments.quant)
        before = read_bandwidth(arguments.threads)
        entries, cleanup = contenders(artifact, arguments)
        figures = alternate(entries, arguments.rounds)
        after = read_bandwidth(arguments.threads)
        for close in cleanup:
            close()
    print(f"{artifact.spec.name} {arguments.quant}, {artifact.weights_bytes / 1e6:.0f} MB, {arguments.threads} threads")
    print(f"read bandwidth before and after: {before:.1f} and {after:.1f} GB/s")
    print(f"{'loop':<28}{'tokens/s':>10}{'GB/s':>8}{'ratio':>8}   quartiles        lowest..highest")
    for ratio in ratios(figures, entries[0].name):
        speed = statistics.median(figures[ratio.name])
        rate = speed * artifact.weights_bytes / 1e9
        print(
            f"{ratio.name:<28}{speed:>10.1f}{rate:>8.1f}{ratio.median:>8.3f}   "
            f"{ratio.first:.3f}..{ratio.third:.3f}   {ratio.low:.3f}..{ratio.high:.3f}"
        )
