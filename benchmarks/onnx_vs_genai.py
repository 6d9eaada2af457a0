"""Our ONNX engine against onnxruntime-genai, on one folder, in turns.

    python benchmarks/onnx_vs_genai.py [--threads 2] [--rounds 8] [--prompt 512] [--decode 64] [--quant int4]

Builds a random Llama of 400 million parameters in a temporary folder (no torch, no download), loads it in both, each
in a process of its own (in one process whoever loads first is measurably slower, whichever it is), and alternates:
prefill, then greedy decode, ours first in every other round. Printed are medians, the ratio of
each round with its quartiles, and the machine's read bandwidth: on a shared machine only ratios mean anything.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_convert.onnx import export
from wattwise_devices.bandwidth import read_bandwidth
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.onnx import BACKEND
from wattwise_runtimes.spec import ModelSpec, RopeSpec

SPEC = ModelSpec(
    architecture="llama", layers=24, hidden=1024, heads=16, kv_heads=8, head_dim=64, ffn=4096, vocab=32000,
    context=4096, rope=RopeSpec(dims=64), tied_head=True, bos_id=1, eos_ids=(2,),
)  # fmt: skip
CLOCK = time.process_time if "--cpu-time" in sys.argv else time.perf_counter  # in the child processes as well
PAUSE_S = 0.05  # both thread pools spin for a few milliseconds after a run


@dataclass(frozen=True, slots=True)
class Round:
    """Tokens per second of one turn of one engine, and the ids it decoded."""

    prefill: float
    decode: float
    ids: list[int]


def random_checkpoint(spec: ModelSpec) -> Checkpoint:
    """Rows drawn when they are read, the same ones every time."""

    def source(name: str, shape: tuple[int, ...]) -> TensorSource:
        def rows(start: int, stop: int) -> np.ndarray:
            if len(shape) == 1:
                return np.ones(stop - start, np.float32)
            rng = np.random.default_rng([zlib.crc32(name.encode()), start])
            scale = np.float32(1 / np.sqrt(shape[1]))
            return rng.standard_normal((stop - start, *shape[1:]), dtype=np.float32) * scale

        return TensorSource(name, shape, "f32", rows)

    tensors = {name: source(name, shape) for name, shape in spec.tensor_shapes().items()}
    return Checkpoint(spec=spec, tensors=tensors, tokenizer=None, origin=Path("random"))


class Ours:
    """One turn on our engine."""

    name = "wattwise"

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        load = LoadSpec(context=context, kv_type="f32", threads=threads)
        self._engine = BACKEND.load(open_artifact(folder), load)

    def turn(self, prompt: np.ndarray, decode: int) -> Round:
        engine = self._engine
        engine.kv.clear()
        start = CLOCK()
        logits = engine.forward(Batch(prompt))
        filled = CLOCK()
        ids = [int(logits[0].argmax())]
        for _ in range(decode):
            ids.append(int(engine.forward(Batch(ids[-1:]))[0].argmax()))
        done = CLOCK()
        return Round(len(prompt) / (filled - start), decode / (done - filled), ids)


class Genai:
    """One turn on onnxruntime-genai."""

    name = "onnxruntime-genai"

    def __init__(self, folder: Path, threads: int, context: int) -> None:
        import onnxruntime_genai as og

        self._og = og
        config = og.Config(str(folder))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model, self._context = og.Model(config), context

    def turn(self, prompt: np.ndarray, decode: int) -> Round:
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=self._context, min_length=self._context, do_sample=False)
        generator = self._og.Generator(self._model, params)
        start = CLOCK()
        generator.append_tokens(prompt.astype(np.int32))
        filled = CLOCK()
        generator.generate_next_token()
        ids = [int(generator.get_next_tokens()[0])]
        begun = CLOCK()
        for _ in range(decode):
            generator.generate_next_token()
            ids.append(int(generator.get_next_tokens()[0]))
        done = CLOCK()
        return Round(len(prompt) / (filled - start), decode / (done - begun), ids)


ENGINES = {kind.name: kind for kind in (Ours, Genai)}


def serve(name: str, folder: Path, threads: int, context: int, connection: Connection) -> None:
    """One engine in its own process: a prompt and a count in, a Round out."""
    engine = ENGINES[name](folder, threads, context)
    connection.send("ready")
    while (request := connection.recv()) is not None:
        connection.send(engine.turn(*request))


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Load both, alternate, print."""
    context = options.prompt + options.decode + 8
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in ENGINES:
        pipes[name], theirs_end = spawn.Pipe()
        spawn.Process(target=serve, args=(name, folder, options.threads, context, theirs_end), daemon=True).start()
        pipes[name].recv()
    prompt = np.random.default_rng(0).integers(3, SPEC.vocab, options.prompt)
    rounds: dict[str, list[Round]] = {name: [] for name in ENGINES}
    for number in range(options.rounds + 1):
        for name in list(ENGINES) if number % 2 else list(ENGINES)[::-1]:
            time.sleep(PAUSE_S)
            pipes[name].send((prompt, options.decode))
            result = pipes[name].recv()
            if number:  # the first round warms up
                rounds[name].append(result)
    for pipe in pipes.values():
        pipe.send(None)
    ours, theirs = rounds[Ours.name], rounds[Genai.name]
    print(f"{'':10} {'wattwise':>12} {'genai':>12}   ratio (quartiles over {options.rounds} rounds)")
    for what in ("prefill", "decode"):
        mine, other = [getattr(r, what) for r in ours], [getattr(r, what) for r in theirs]
        ratios = [a / b for a, b in zip(mine, other, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{what:10} {statistics.median(mine):8.1f} t/s {statistics.median(other):8.1f} t/s"
            f"   {middle:.3f} ({low:.3f} .. {high:.3f})"
        )
    same = sum(a == b for a, b in zip(ours[0].ids, theirs[0].ids, strict=True))
    print(f"ids that agree: {same} of {len(ours[0].ids)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds, for busy machines; use 1 thread")
    parser.add_argument("--folder", type=Path, help="an existing folder instead of the random model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder
        if folder is None:
            folder = export(random_checkpoint(SPEC), Path(temporary) / "model", quant=options.quant).path
        size_mb = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
        print(f"{options.quant}, {size_mb:.0f} MB, {options.threads} threads")
        print(f"read bandwidth {read_bandwidth(options.threads):.1f} GB/s")
        compare(folder, options)
        print(f"read bandwidth {read_bandwidth(options.threads):.1f} GB/s")


if __name__ == "__main__":
    main()
