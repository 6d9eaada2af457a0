"""The quality guard: it sees what an eviction changes, and changes nothing itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from support.chat_model import tiny_model
from support.specs import TINY_SPECS, random_weights
from wattwise.events import QualityLow
from wattwise.kv.guard import EVERY, TAIL, GuardSettings, QualityGuard, parse_guard
from wattwise_devices.errors import PlanError
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine

SPEC = TINY_SPECS["llama"]
WEIGHTS = random_weights(SPEC)
IDS = [int(i) for i in np.random.default_rng(1).integers(3, SPEC.vocab, 60)]


def filled() -> ReferenceEngine:
    engine = ReferenceEngine(SPEC, WEIGHTS, LoadSpec(context=64, chunk=64, kv_type="f32"))
    engine.forward(Batch(IDS))
    return engine


def by_head(length: int, kept: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    last = np.arange(length - TAIL - 1, length)
    rows = [
        [np.r_[np.sort(rng.permutation(length - TAIL - 1)[: kept - TAIL - 1]), last] for _ in range(SPEC.kv_heads)]
        for _ in range(SPEC.layers)
    ]
    return np.array(rows)


@pytest.mark.parametrize("level", ["token", "head"])
def test_a_look_changes_nothing(level: str) -> None:
    watched, plain = filled(), filled()
    guard = QualityGuard(watched, GuardSettings(least=0.9))
    guard.before(IDS[-TAIL:])
    for engine in (watched, plain):
        if level == "token":
            engine.kv.drop(list(range(5, 35)))
        else:
            engine.kv.drop_by_head(by_head(60, 30))
    agreement = guard.after(IDS[-TAIL:])
    assert agreement is not None and 0 <= agreement <= 1
    assert guard.agreement == agreement
    assert np.array_equal(watched.kv.positions, plain.kv.positions)
    assert watched.kv.export() == plain.kv.export()
    assert np.array_equal(watched.forward(Batch([7, 8])), plain.forward(Batch([7, 8])))


def test_rows_that_matter_are_missed() -> None:
    engine = filled()
    engine.kv.data[:, 1, :, :20] *= 40  # what these rows say drowns the rest
    guard = QualityGuard(engine, GuardSettings(least=0.9))
    guard.before(IDS[-TAIL:])
    engine.kv.drop(list(range(20)))
    agreement = guard.after(IDS[-TAIL:])
    assert agreement is not None and agreement < 0.7


def test_nothing_dropped_is_full_agreement() -> None:
    engine = filled()
    guard = QualityGuard(engine, GuardSettings(least=0.9))
    guard.before(IDS[-TAIL:])
    assert guard.after(IDS[-TAIL:]) == 1.0


def test_one_eviction_in_a_few_is_looked_at() -> None:
    engine = filled()
    guard = QualityGuard(engine, GuardSettings(least=0.9))
    looked = []
    for _ in range(2 * EVERY):
        guard.before(IDS[-TAIL:])
        looked.append(guard.after(IDS[-TAIL:]) is not None)
    assert looked == ([True] + [False] * (EVERY - 1)) * 2


def test_words() -> None:
    assert parse_guard("0.9") == GuardSettings(least=0.9)
    assert parse_guard("95%:widen") == GuardSettings(least=0.95, widens=True)
    assert str(parse_guard("0.9:widen")) == "0.9:widen"
    for wrong in ("", "2", "0", "often", "0.9:shrink", "120%"):
        with pytest.raises(PlanError, match="KV guard"):
            parse_guard(wrong)


def test_an_engine_that_cannot_put_rows_back_is_refused() -> None:
    engine = filled()
    engine.capabilities = dataclasses.replace(engine.capabilities, export=False)
    with pytest.raises(PlanError, match="export"):
        QualityGuard(engine, GuardSettings(least=0.9))


# ---------------------------------------------------------------- in replies


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The quick brown fox jumps. " * 16}]


@pytest.mark.parametrize("policy", ["keydiff:96:token", "keydiff:96:head", "window:96", "snapkv:96:token"])
def test_a_guarded_reply_is_the_same_reply(policy: str) -> None:
    with tiny_model(kv_policy=policy) as plain, tiny_model(kv_policy=policy, kv_guard="0.5") as guarded:
        want = plain.chat(MESSAGES, max_tokens=60, temperature=0.8, seed=3)
        got = guarded.chat(MESSAGES, max_tokens=60, temperature=0.8, seed=3)
    assert got.ids == want.ids
    assert want.stats.kv_agreement is None
    assert got.stats.kv_agreement is not None and 0 <= got.stats.kv_agreement <= 1


def test_too_little_agreement_is_told_and_widens_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QualityGuard, "after", lambda self, tail: 0.5)
    with tiny_model(kv_policy="keydiff:96:token", kv_guard="90%:widen") as model:
        reply = model.chat(MESSAGES, max_tokens=4)
        low = [event for event in reply.events if isinstance(event, QualityLow)]
        assert low[0].widened_to == 96 + 24 and "50 % of first choices" in low[0].message
        assert [event.widened_to for event in low if event.widened_to] == [120, 132, 136]
        assert low[-1].widened_to is None, "a block of 8 is not halved"
        assert model.held.eviction is not None and model.held.eviction.rows == 96 + 48
        assert model.engine.kv.length <= model.engine.kv.capacity_tokens == 144
    with tiny_model(kv_policy="keydiff:96:token", kv_guard="0.9") as model:
        reply = model.chat(MESSAGES, max_tokens=4)
        assert {event.widened_to for event in reply.events if isinstance(event, QualityLow)} == {None}
