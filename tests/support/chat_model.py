"""A whole Model for SDK tests: the reference engine with tiny random weights and a byte-level vocabulary.

`ScriptedEngine` plays given tokens instead, counts its calls, and can wait at a gate: for streams and cancelling.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support.specs import TINY_SPECS, random_weights
from wattwise.kv.eviction import Eviction, parse_eviction
from wattwise.kv.guard import parse_guard
from wattwise.model import Model
from wattwise.planning import Plan
from wattwise_runtimes.contracts import Artifact, Batch, Engine, ForwardCancelled, Ledger, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.text.tokenizer import Tokenizer
from wattwise_runtimes.text.vocabulary import BYTE_SPELLING, CONTROL, NORMAL, Vocabulary

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IM_END = 257


def byte_tokenizer(template: str | None = CHATML) -> Tokenizer:
    """One token a byte, then the three specials: ids are easy to write by hand."""
    return Tokenizer(
        Vocabulary(
            model="bpe",
            tokens=(*(BYTE_SPELLING[b] for b in range(256)), *SPECIALS),
            kinds=(*([NORMAL] * 256), *([CONTROL] * 3)),
            pre="gpt-2",
            eos_id=IM_END,
            add_space_prefix=False,
            chat_template=template,
        )
    )


SPEC = dataclasses.replace(TINY_SPECS["llama"], vocab=259, context=512, eos_ids=(IM_END,), bos_id=None)


def fake_plan(engine: str = "reference", context: int = 512, eviction: Eviction | None = None) -> Plan:
    artifact = Artifact(path=Path("tiny.gguf"), format="gguf", spec=SPEC, weights_bytes=1000, quant="f32")
    return Plan(
        model="tiny", artifact=artifact, engine=engine, context=context, kv_type="f32", chunk=16, threads=1,
        threads_batch=1, ledger=Ledger(weights=1000, kv=10, compute=10, runtime=10), budget_bytes=10**9,
        budget_source="a test", eviction=eviction,
    )  # fmt: skip


def tiny_model(
    *,
    context: int = 512,
    template: str | None = CHATML,
    seed: int = 0,
    kv_policy: str | None = None,
    kv_guard: str | None = None,
    kv_spill: int | None = None,
) -> Model:
    """Random weights: fluent nonsense, but the same nonsense every time."""
    eviction = None
    if kv_policy is not None:
        eviction = parse_eviction(kv_policy).resolve(context=context, row_bytes=1, level="head")
        context = eviction.rows
    load = LoadSpec(context=context, chunk=eviction.block if eviction else 16, kv_type="f32")
    engine = ReferenceEngine(SPEC, random_weights(SPEC, seed), load)
    made = fake_plan(context=context, eviction=eviction)
    made = dataclasses.replace(
        made, guard=parse_guard(kv_guard) if kv_guard is not None else None, spill_bytes=kv_spill
    )
    return Model(made, engine, byte_tokenizer(template), load_ms=1.0)


def scripted_model(tokens: Sequence[int], *, context: int = 512, template: str | None = CHATML) -> Model:
    """A model whose replies are exactly `tokens`, one after another, then <|im_end|>."""
    return Model(fake_plan(context=context), ScriptedEngine(tokens, context), byte_tokenizer(template), load_ms=1.0)


class ScriptedEngine:
    """An Engine that says what it was told to. `forwards` holds every batch; `gate` makes forward wait."""

    spec = SPEC

    def __init__(self, tokens: Sequence[int], context: int) -> None:
        self._script = [*tokens, IM_END]
        self._inner = ReferenceEngine(SPEC, random_weights(SPEC), LoadSpec(context=context, chunk=16, kv_type="f32"))
        self.capabilities, self.kv = self._inner.capabilities, self._inner.kv
        self.forwards: list[list[int]] = []
        self.gate: threading.Event | None = None
        self.fail_at: int | None = None
        self._said = 0

    def forward(self, batch: Batch, cancelled: Callable[[], bool] | None = None) -> np.ndarray:
        if self.fail_at is not None and len(self.forwards) >= self.fail_at:
            from wattwise_devices.errors import BackendError

            raise BackendError("the engine broke, as told")
        self.forwards.append([int(t) for t in batch.tokens])
        while self.gate is not None and not self.gate.wait(0.005):
            if cancelled is not None and cancelled():
                raise ForwardCancelled(0)
        self._inner.forward(dataclasses.replace(batch, logits="none"), cancelled)
        if self._said == 0 or self.forwards[-1] != [self._script[self._said - 1]]:  # a prompt: start over
            self._said = 0
        logits = np.zeros((1, SPEC.vocab), np.float32)
        logits[0, self._script[min(self._said, len(self._script) - 1)]] = 50.0
        self._said += 1
        return logits

    def set_threads(self, threads: int, threads_batch: int | None = None) -> None:
        self._inner.set_threads(threads, threads_batch)

    def nbytes(self) -> Ledger:
        return self._inner.nbytes()

    def where(self) -> dict[str, Any]:
        return {"decode": "a script"}

    def close(self) -> None:
        self._inner.close()


_: type[Engine] = ScriptedEngine  # the type checker holds the double to the contract
