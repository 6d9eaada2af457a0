"""What our code adds to llama.cpp's own decode speed: `python benchmarks/llama_overhead.py`.

The base is the barest loop there is in Python: llama_decode on a preallocated batch, llama_get_logits_ith, numpy's
argmax over a prepared view. Against it, in turns, on the same native context: `Engine.forward` with argmax.
`sdk_decode.py` adds the whole SDK.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from support import Contender, run_decode_benchmark
from wattwise_runtimes.contracts import Artifact, Batch, LoadSpec
from wattwise_runtimes.engines.llamacpp import BACKEND
from wattwise_runtimes.engines.llamacpp.engine import LlamaEngine

PROMPT = list(range(5, 21))


class BareLoop:
    """llama-cpp-python's low-level functions as the package binds them, on the engine's own native context.

    The same weights in the same memory: a model loaded twice into one process is 5 % faster the second time, and
    from process to process memory falls out differently, either of which would drown what is measured here.
    """

    def __init__(self, engine: LlamaEngine) -> None:
        import llama_cpp.llama_cpp as api

        self._api, self._vocab = api, engine.spec.vocab
        self._context = engine._context
        self._batch = api.llama_batch_init(len(PROMPT), 0, 1)
        self._memory = api.llama_get_memory(self._context)

    def _decode(self, tokens: list[int], first: int) -> int:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, first + i, 1, 0
            batch.seq_id[i][0] = 0
        batch.logits[len(tokens) - 1] = 1
        if self._api.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        row = self._api.llama_get_logits_ith(self._context, -1)
        address = ctypes.addressof(row.contents)
        if address != getattr(self, "_address", None):
            self._address, self._view = address, np.ctypeslib.as_array(row, shape=(self._vocab,))
        return int(self._view.argmax())

    def run(self, tokens: int) -> float:
        """Tokens per second of greedy decoding after the prompt."""
        self._api.llama_memory_clear(self._memory, False)
        token = self._decode(PROMPT, 0)
        started = time.perf_counter()
        for position in range(len(PROMPT), len(PROMPT) + tokens):
            token = self._decode([token], position)
        return tokens / (time.perf_counter() - started)


def engine_loop(engine: LlamaEngine, tokens: int) -> float:
    """Tokens per second of Engine.forward and argmax."""
    engine.kv.clear()
    token = int(engine.forward(Batch(PROMPT))[0].argmax())
    started = time.perf_counter()
    for _ in range(tokens):
        token = int(engine.forward(Batch([token]))[0].argmax())
    return tokens / (time.perf_counter() - started)


def contenders(artifact: Artifact, arguments: argparse.Namespace) -> tuple[list[Contender], list[Callable[[], object]]]:
    """What is measured, the base first; and what to call at the end."""
    engine = BACKEND.load(artifact, LoadSpec(context=len(PROMPT) + arguments.tokens + 64, threads=arguments.threads))
    return engine_contenders(engine, arguments.tokens), [engine.close]


def engine_contenders(engine: LlamaEngine, tokens: int) -> list[Contender]:
    """The bare loop and `Engine.forward` on one engine. Its KV store is cleared before it is used by either."""
    bare = BareLoop(engine)
    return [
        Contender("bare llama_decode", lambda: bare.run(tokens)),
        Contender("Engine.forward", lambda: engine_loop(engine, tokens)),
    ]


if __name__ == "__main__":
    run_decode_benchmark(__doc__ or "", contenders)
