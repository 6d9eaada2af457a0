"""What the whole SDK adds to llama.cpp's decode speed: `python benchmarks/sdk_decode.py`.

As in llama_overhead.py, whose bare llama_decode loop is the base; against it, in turns, `Model.stream` with everything
that a reply involves (sampling, text, stop checks, stats), greedily and with temperature, top-p and min-p.
Bars: at least 0.98 greedily, 0.95 sampled.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import llama_overhead

from support import SIZES, Contender, alternate, common_arguments, model_folder, ratios, write_random_gguf
from wattwise.model import Model
from wattwise.planning import Plan
from wattwise_devices.bandwidth import read_bandwidth
from wattwise_runtimes.contracts import Artifact, Ledger, LoadSpec
from wattwise_runtimes.engines.llamacpp import BACKEND
from wattwise_runtimes.text.tokenizer import Tokenizer
from wattwise_runtimes.text.vocabulary import BYTE_SPELLING, NORMAL, Vocabulary

SAMPLED = {"temperature": 0.8, "top_k": 0, "top_p": 0.95, "min_p": 0.05, "seed": 1}


def word_tokenizer(size: int) -> Tokenizer:
    """A vocabulary of that size: the bytes, then made-up words; nothing ends a reply."""
    words = tuple(f"w{i}" for i in range(size - 256))
    tokens = (*BYTE_SPELLING.values(), *words)
    kinds = (NORMAL,) * size
    return Tokenizer(Vocabulary(model="bpe", tokens=tokens, kinds=kinds, pre="gpt-2", add_space_prefix=False))


def sdk_model(artifact: Artifact, context: int, threads: int) -> Model:
    """A Model over the artifact, without planning (the file has no vocabulary of its own)."""
    spec = LoadSpec(context=context, threads=threads)
    plan = Plan(
        model=artifact.path.stem, artifact=artifact, engine="llamacpp", context=context, kv_type="f16", chunk=512,
        threads=threads, threads_batch=threads, ledger=Ledger(), budget_bytes=None, budget_source="none",
    )  # fmt: skip
    return Model(plan, BACKEND.load(artifact, spec), word_tokenizer(artifact.spec.vocab), load_ms=0.0)


def stream_loop(model: Model, tokens: int, **sampling: object) -> float:
    """Tokens per second between the end of the prompt and the end of the reply."""
    model.forget()
    with model.stream("some words to go on", raw=True, max_tokens=tokens + 1, **sampling) as stream:
        next(stream)
        started = time.perf_counter()
        for _ in stream:
            pass
        elapsed = time.perf_counter() - started
    return (stream.reply.stats.predicted_n - 1) / elapsed


def contenders(artifact: Artifact, arguments: argparse.Namespace) -> tuple[list[Contender], list[Callable[[], object]]]:
    """The bare loop and the engine as before, then the SDK."""
    entries, cleanup = llama_overhead.contenders(artifact, arguments)
    model = sdk_model(artifact, arguments.tokens + 64, arguments.threads)
    entries += [
        Contender("Model.stream, greedy", lambda: stream_loop(model, arguments.tokens, temperature=0)),
        Contender("Model.stream, sampled", lambda: stream_loop(model, arguments.tokens, **SAMPLED)),
    ]
    return entries, [*cleanup, model.close]


def main() -> None:
    arguments = common_arguments(__doc__ or "").parse_args()
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
    print(f"{'loop':<28}{'tokens/s':>10}{'ratio':>8}   lowest..highest")
    for ratio in ratios(figures, entries[0].name):
        speed = statistics.median(figures[ratio.name])
        print(f"{ratio.name:<28}{speed:>10.1f}{ratio.median:>8.3f}   {ratio.low:.3f}..{ratio.high:.3f}")


if __name__ == "__main__":
    main()
