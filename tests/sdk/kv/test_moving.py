"""Rows behind an edit, moved: at the right positions, exact where nothing before them matters, and honest elsewhere."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from support.chat_model import tiny_model
from support.specs import TINY_SPECS, random_weights
from wattwise.events import RowsMoved
from wattwise.kv.moving import CHECKED, LEAST, Move, carry_out, check_can_move, find_move
from wattwise_devices.errors import PlanError
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine

SPEC = dataclasses.replace(TINY_SPECS["llama"], context=512)
WEIGHTS = random_weights(SPEC)
IDS = [int(i) for i in np.random.default_rng(1).integers(3, SPEC.vocab, 260)]


def engine_for(ids: list[int] | None = None) -> ReferenceEngine:
    engine = ReferenceEngine(SPEC, WEIGHTS, LoadSpec(context=400, chunk=400, kv_type="f32"))
    if ids:
        engine.forward(Batch(ids))
    return engine


@pytest.mark.parametrize(
    ("removed", "added"),
    [(10, 10), (10, 3), (10, 25), (10, 0), (0, 10)],
    ids=["same", "shorter", "longer", "gone", "new"],
)
def test_an_edit_is_found_and_carried_out(removed: int, added: int) -> None:
    old = IDS[:200]
    new = [*IDS[:40], *[7 + i % 3 for i in range(added)], *IDS[40 + removed : 200], 5, 6, 7]
    move = find_move(old, new)
    assert move == Move(first=40, removed=removed, added=added, kept=160 - removed)
    engine = engine_for(old)
    error = carry_out(engine, move, new)
    assert engine.kv.positions.tolist() == list(range(200 + move.by))
    exact = engine_for(new[: 200 + move.by])
    got, want = engine.kv.view().keys, exact.kv.view().keys
    assert np.abs(got(0) - want(0)).max() < 1e-4, "in layer 0 keys know only their token and position"
    read = 40 + added + CHECKED
    assert np.abs(got(1)[:, :read] - want(1)[:, :read]).max() < 1e-4, "what was read is exact"
    later = got(1)[:, read:] - want(1)[:, read:]
    assert np.abs(later).max() > 0, "what was moved is not"
    assert 0 < error < 1
    logits = engine.forward(Batch(new[200 + move.by :]))
    assert np.isfinite(logits).all()


def test_a_single_layer_is_moved_without_any_error() -> None:
    spec = dataclasses.replace(SPEC, layers=1)
    weights = random_weights(spec)
    load = LoadSpec(context=400, chunk=400, kv_type="f32")
    engine, exact = ReferenceEngine(spec, weights, load), ReferenceEngine(spec, weights, load)
    old, new = IDS[:200], [*IDS[:40], 9, 9, 9, *IDS[50:200], 5]
    engine.forward(Batch(old))
    move = find_move(old, new)
    assert move is not None
    assert carry_out(engine, move, new) < 1e-5
    exact.forward(Batch(new[:-1]))
    got, want = engine.forward(Batch(new[-1:])), exact.forward(Batch(new[-1:]))
    assert np.abs(got - want).max() < 1e-4 * want.std()


def test_too_little_to_move_is_read_again() -> None:
    assert find_move(IDS[:200], [*IDS[:150], 7, *IDS[160:200]]) is None, "less than is worth it"
    assert find_move(IDS[:200], [*IDS[:40], 7, 8]) is None, "the rest is gone"
    assert find_move(IDS[:200], IDS[:220]) is None, "nothing was edited"
    assert find_move([], IDS[:9]) is None
    assert find_move(IDS[: LEAST + 1], [7, *IDS[1 : LEAST + 1]]) == Move(first=0, removed=1, added=1, kept=LEAST)


def test_engines_that_cannot_are_named() -> None:
    can = engine_for().capabilities
    check_can_move(can)
    for missing, word in (({"drop": "none"}, "drop"), ({"shift": False}, "turn"), ({"export": False}, "export"),
                          ({"keys": False}, "keys")):  # fmt: skip
        with pytest.raises(PlanError, match=word):
            check_can_move(dataclasses.replace(can, **missing))


def test_an_edited_conversation_moves_its_rows_and_tells_the_error() -> None:
    with tiny_model() as model:
        chat = model.conversation("Be brief.")
        for said in ("My name is Ann.", "I live in a small house by the sea.", "I have a dog and two cats."):
            chat.say(said, max_tokens=12, temperature=0)
        chat.edit(1, "My name is Alexandra.")
        reply = chat.say("Who am I?", max_tokens=8, temperature=0, move_rows=True)
        moved = [event for event in reply.events if isinstance(event, RowsMoved)]
        assert moved[0].by == len("Alexandra") - len("Ann") and moved[0].tokens >= LEAST
        assert moved[0].error is not None and 0 < moved[0].error < 1
        assert reply.stats.prompt_n < 60, "what follows the edit is not read again"
        prompt = model.prompt_ids(chat.messages[:-1])
        assert list(model.held.ids[: len(prompt)]) == prompt
        chat.edit(len(chat.messages) - 2, "Who is he?")
        short = chat.regenerate(max_tokens=4, temperature=0, move_rows=True).run()
        assert [event.tokens for event in short.events if isinstance(event, RowsMoved)] == [0]
        with pytest.raises(IndexError, match="99"):
            chat.edit(99, "")


def test_an_edit_without_the_option_is_exact() -> None:
    with tiny_model() as model, tiny_model() as other:
        chat = model.conversation("Be brief.")
        for said in ("My name is Ann.", "I live in a small house by the sea."):
            chat.say(said, max_tokens=12, temperature=0)
        chat.edit(1, "My name is Alexandra.")
        reply = chat.say("Who am I?", max_tokens=12, temperature=0)
        assert not reply.events
        assert reply.ids == other.chat(chat.messages[:-1], max_tokens=12, temperature=0).ids


def test_moving_rows_under_eviction_is_refused_by_name() -> None:
    with tiny_model(kv_policy="keydiff:96") as model, pytest.raises(PlanError, match="KV policy"):
        model.chat("Hello", move_rows=True)
