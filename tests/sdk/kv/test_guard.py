"""The quality guard: it sees what an eviction changes, and changes nothing itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from support.specs import TINY_SPECS, random_weights
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
