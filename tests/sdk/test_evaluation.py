"""Two models are compared only over one vocabulary; what it comes to is tested with the command line."""

from __future__ import annotations

import dataclasses

import pytest

from support.chat_model import SPEC, byte_tokenizer, fake_plan, tiny_model
from support.specs import random_weights
from wattwise.evaluation import evaluate
from wattwise.model import Model
from wattwise_devices.errors import PlanError
from wattwise_runtimes.contracts import LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.text.tokenizer import Tokenizer

TEXT = "All work and no play makes Jack a dull boy. " * 3


def test_the_first_differing_token_is_named() -> None:
    vocabulary = byte_tokenizer().vocabulary
    tokens = (*vocabulary.tokens[:-1], "<|another|>")
    engine = ReferenceEngine(SPEC, random_weights(SPEC), LoadSpec(context=64))
    other = Model(fake_plan(), engine, Tokenizer(dataclasses.replace(vocabulary, tokens=tokens)), load_ms=0.0)
    with pytest.raises(PlanError, match="token 258"):
        evaluate(tiny_model(), TEXT, against=other)


def test_a_smaller_vocabulary_is_refused() -> None:
    spec = dataclasses.replace(SPEC, vocab=258)
    engine = ReferenceEngine(spec, random_weights(spec), LoadSpec(context=64))
    other = Model(fake_plan(), engine, byte_tokenizer(), load_ms=0.0)
    with pytest.raises(PlanError, match="258"):
        evaluate(tiny_model(), TEXT, against=other)


def test_a_model_agrees_with_itself() -> None:
    found = evaluate(tiny_model(), TEXT, window=32, against=tiny_model())
    assert found.kl_nats == pytest.approx(0, abs=1e-9)
    assert found.same_top1 == found.tokens


@pytest.mark.parametrize("policy", ["keydiff:48:token", "knorm:48:head", "window:48", "tova:48:token"])
def test_a_model_under_eviction_differs_from_the_full_cache_only_where_rows_are_gone(policy: str) -> None:
    short = evaluate(tiny_model(kv_policy=policy), TEXT, window=40, against=tiny_model())
    assert short.kl_nats == pytest.approx(0, abs=1e-6), "windows within the budget lose nothing"
    long = evaluate(tiny_model(kv_policy=policy), TEXT, window=120, against=tiny_model())
    assert long.tokens == len(TEXT) - 2  # two windows, the first token of each is not scored
    assert long.kl_nats is not None and long.kl_nats > 1e-4


def test_pieces_do_not_change_the_figures() -> None:
    whole, model = evaluate(tiny_model(), TEXT, window=120), tiny_model(kv_policy="keydiff:192")
    assert model.plan.eviction is not None and model.held.piece(500) < 120, "read in pieces, nothing evicted"
    assert evaluate(model, TEXT, window=120).nats == pytest.approx(whole.nats, rel=1e-5)
