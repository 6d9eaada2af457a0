"""How well a model predicts a text: perplexity, bits per byte, and its distance from another model.

The text is cut into windows; each starts afresh with BOS, and every token after it is scored. Bits per byte does not
depend on the tokenizer: information of all scored tokens over the bytes that they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattwise.model import Model
from wattwise.prefix import NO_TOKENS
from wattwise_devices.errors import PlanError
from wattwise_runtimes.contracts import Batch

_PIECE = 128  # tokens whose logits are held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Sums over all scored tokens; natural logarithms. kl and top1 only against another model."""

    tokens: int
    bytes: int
    nats: float
    kl_nats: float | None = None
    same_top1: int | None = None

    @property
    def nats_per_token(self) -> float:
        """Mean negative log-likelihood."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood."""
        return math.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes

    def to_json(self) -> dict[str, Any]:
        """Plain data with stable names."""
        return {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "kl_nats_per_token": None if self.kl_nats is None else self.kl_nats / self.tokens,
            "top1_agreement": None if self.same_top1 is None else self.same_top1 / self.tokens,
        }


def windows(model: Model, text: str, size: int, *, split: str | None = None) -> Iterator[list[int]]:
    """The ids of each window, BOS first where the tokenizer has one; the last one may be shorter.

    size: tokens of a window, BOS included. split: cut the text here first and take one window from each part.
    """
    tokenizer = model.tokenizer
    bos = [tokenizer.bos_id] if tokenizer.bos_id is not None else []
    for part in text.split(split) if split else [text]:
        part = part.strip() if split else part
        ids = tokenizer.encode(part)
        step = size - len(bos)
        starts = range(0, 1 if split else len(ids), step)
        for start in starts:
            window = bos + ids[start : start + step]
            if len(window) > 1:
                yield window


def evaluate(
    model: Model,
    text: str,
    *,
    window: int = 512,
    split: str | None = None,
    against: Model | None = None,
    max_tokens: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score a text. against: a model with the same vocabulary, which is taken as the truth for KL and top-1.

    A model that evicts from its KV cache is scored as it would read the text: piece by piece, each piece seeing what
    was kept of the earlier ones. max_tokens: stop after so many scored tokens. Raises PlanError for models that cannot
    be compared.
    """
    if against is not None:
        _check_same_vocabulary(model, against)
    models = [model] if against is None else [model, against]
    size = min(window, *(_longest(m, window) for m in models))
    tokens, scored_bytes, nats, kl, top1 = 0, 0, 0.0, 0.0, 0
    for ids in windows(model, text, size, split=split):
        readings = [Reading(m) for m in models]
        piece = min(reading.piece for reading in readings)
        for start in range(0, len(ids) - 1, piece):
            stop = min(start + piece, len(ids) - 1)
            logp, *truths = (reading.read(ids[start:stop]) for reading in readings)
            targets = np.asarray(ids[start + 1 : stop + 1])
            nats -= float(logp[np.arange(len(targets)), targets].sum())
            for truth in truths:
                kl += float((np.exp(truth) * (truth - logp)).sum())
                top1 += int((truth.argmax(1) == logp.argmax(1)).sum())
        tokens += len(ids) - 1
        scored_bytes += sum(len(model.tokenizer.token_bytes(int(t))) for t in ids[1:])
        if on_progress is not None:
            on_progress(tokens)
        if max_tokens is not None and tokens >= max_tokens:
            break
    if tokens == 0:
        raise ValueError("the text is too short to score: it gives no window of two tokens")
    for m in models:
        m.forget()
    return Evaluation(
        tokens=tokens,
        bytes=scored_bytes,
        nats=nats,
        kl_nats=kl if against is not None else None,
        same_top1=top1 if against is not None else None,
    )


def _longest(model: Model, window: int) -> int:
    """Tokens of a window that the model can read."""
    return window if model.plan.eviction is not None else model.engine.kv.capacity_tokens


class Reading:
    """One model reading one text from its beginning, with the eviction that its plan says."""

    def __init__(self, model: Model) -> None:
        model.forget()
        self._engine, self.held = model.engine, model.held
        self.piece = self.held.piece(_PIECE)

    def read(self, ids: Sequence[int]) -> np.ndarray:
        """Natural log-probabilities after each of the next tokens, float64 [len(ids), vocab]; at most a piece."""
        self.held.make_room(len(ids), NO_TOKENS)
        logits = self._engine.forward(Batch(ids, logits="all")).astype(np.float64)
        self.held.extend(ids)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def log_probabilities(model: Model, ids: Sequence[int]) -> np.ndarray:
    """Natural log-probabilities after each token but the last, float64 [len(ids) - 1, vocab]."""
    reading = Reading(model)
    cuts = range(0, len(ids) - 1, reading.piece)
    return np.concatenate([reading.read(ids[i : min(i + reading.piece, len(ids) - 1)]) for i in cuts])


def _check_same_vocabulary(model: Model, against: Model) -> None:
    """Equal counts of logits, and the same texts behind them; padding beyond the shorter list may differ."""
    clash = (model.plan.model, against.plan.model)
    if against.engine.spec.vocab != model.engine.spec.vocab:
        raise PlanError(
            f"KL needs one vocabulary: {clash[0]} has {model.engine.spec.vocab} tokens, "
            f"{clash[1]} has {against.engine.spec.vocab}",
            clash=clash,
        )
    mine, theirs = model.tokenizer.vocabulary.tokens, against.tokenizer.vocabulary.tokens
    for token, (one, other) in enumerate(zip(mine, theirs, strict=False)):
        if one != other:
            raise PlanError(
                f"KL needs one vocabulary: token {token} is {one!r} in {clash[0]}, {other!r} in {clash[1]}", clash
            )
