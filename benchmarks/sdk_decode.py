"""What the whole SDK adds to llama.cpp's decode speed: `python benchmarks/sdk_decode.py`.

As in llama_overhead.py, whose bare llama_decode loop is the base; against it, in turns, `Model.stream` with everything
that a reply involves (sampling, text, stop checks, stats), greedily and with temperature, top-p and min-p.
Bars: at least 0.98 greedily, 0.95 sampled.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from llama_overhead import engine_contenders

from support import Contender, run_decode_benchmark
from wattwise.model import Model
from wattwise.planning import Plan
from wattwise_runtimes.contracts import Artifact, Ledger, LoadSpec
from wattwise_runtimes.engines.llamacpp import BACKEND
from wattwise_runtimes.engines.llamacpp.engine import LlamaEngine
from wattwise_runtimes.text.tokenizer import Tokenizer
from wattwise_runtimes.text.vocabulary import BYTE_SPELLING, NORMAL, Vocabulary

SAMPLED = {"temperature": 0.8, "top_k": 0, "top_p": 0.95, "min_p": 0.05, "seed": 1}


def word_tokenizer(size: int) -> Tokenizer:
    """A vocabulary of that size: the bytes, then made-up words; nothing ends a reply."""
    words = tuple(f"w{i}" for i in range(size - 256))
    tokens = (*BYTE_SPELLING.values(), *words)
    kinds = (NORMAL,) * size
    return Tokenizer(Vocabulary(model="bpe", tokens=tokens, kinds=kinds, pre="gpt-2", add_space_prefix=False))


def sdk_model(artifact: Artifact, engine: LlamaEngine, context: int, threads: int) -> Model:
    """A Model over a loaded engine, without planning (the file has no vocabulary of its own)."""
    plan = Plan(
        model=artifact.path.stem, artifact=artifact, engine="llamacpp", context=context, kv_type="f16", chunk=512,
        threads=threads, threads_batch=threads, ledger=Ledger(), budget_bytes=None, budget_source="none",
    )  # fmt: skip
    return Model(plan, engine, word_tokenizer(artifact.spec.vocab), load_ms=0.0)


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
    """The bare loop and the engine, then the SDK, all on one native context."""
    context = arguments.tokens + 96
    engine = BACKEND.load(artifact, LoadSpec(context=context, threads=arguments.threads))
    model = sdk_model(artifact, engine, context, arguments.threads)
    return [
        *engine_contenders(engine, arguments.tokens),
        Contender("Model.stream, greedy", lambda: stream_loop(model, arguments.tokens, temperature=0)),
        Contender("Model.stream, sampled", lambda: stream_loop(model, arguments.tokens, **SAMPLED)),
    ], [model.close]


if __name__ == "__main__":
    run_decode_benchmark(__doc__ or "", contenders)
