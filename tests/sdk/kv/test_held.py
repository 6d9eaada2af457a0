"""The held prefix under eviction, on the reference engine: what is kept, rewound and recomputed, token by token.

The yardstick is a plain engine that is given exactly the rows that should be left.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from support.specs import TINY_SPECS, random_weights
from wattwise.kv.eviction import Eviction, parse_eviction
from wattwise.kv.policy import policy_names
from wattwise.prefix import HeldPrefix, close_holes
from wattwise_devices.errors import BudgetError, ContextOverflow, PlanError
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine

SPEC = dataclasses.replace(TINY_SPECS["llama"], context=256)
WEIGHTS = random_weights(SPEC)
IDS = [int(i) for i in np.random.default_rng(1).integers(3, SPEC.vocab, 200)]
NOTHING = np.zeros(0, np.int64)


def eviction(text: str, level: str = "token", context: int = 256) -> Eviction:
    return parse_eviction(text).resolve(context=context, row_bytes=1, level=level)  # type: ignore[arg-type]


def engine_for(made: Eviction | None, spec=SPEC) -> ReferenceEngine:
    rows = made.rows if made is not None else 256
    return ReferenceEngine(spec, WEIGHTS, LoadSpec(context=rows, chunk=made.block if made else 16, kv_type="f32"))


def read(engine: ReferenceEngine, held: HeldPrefix, ids: list[int], protected: np.ndarray = NOTHING) -> np.ndarray:
    """As generation does: piece by piece, room made before each."""
    logits = np.zeros((0, SPEC.vocab))
    done = 0
    while done < len(ids):
        piece = held.piece(len(ids) - done)
        held.make_room(piece, protected)
        logits = engine.forward(Batch(ids[done : done + piece]))
        held.extend(ids[done : done + piece])
        done += piece
    return logits


@pytest.mark.parametrize("level", ["token", "head"])
@pytest.mark.parametrize("name", policy_names())
def test_rows_never_exceed_budget_and_block_and_sinks_stay(name: str, level: str) -> None:
    made = eviction(f"{name}:40:{level}" + (":keep" if level == "head" else ""), level)
    engine = engine_for(made)
    held = HeldPrefix(engine, made)
    assert engine.kv.capacity_tokens == made.rows
    read(engine, held, IDS)
    for token in IDS[:30]:  # decoding
        read(engine, held, [token])
        assert engine.kv.length <= made.rows
    assert list(held.ids) == IDS + IDS[:30]
    sinks = engine.kv.view().head_positions
    positions = sinks(1) if sinks is not None else engine.kv.positions[None]
    assert np.all(positions[:, :4] == np.arange(4))
    fewest = 230 - made.rows if level == "token" else 1  # a token counts when the last head has dropped it
    assert fewest <= held.evicted <= 230 - made.budget_tokens


@pytest.mark.parametrize("level", ["token", "head"])
def test_protected_tokens_are_never_evicted(level: str) -> None:
    made = eviction(f"keydiff:40:{level}", level)
    engine = engine_for(made)
    held = HeldPrefix(engine, made)
    protected = np.arange(8, 20)
    read(engine, held, IDS, protected)
    view = engine.kv.view()
    for layer in range(SPEC.layers):
        positions = view.head_positions(layer) if view.head_positions is not None else view.positions[None]
        assert all(np.isin(protected, row).all() for row in positions)


def test_too_much_protection_is_refused_before_anything_is_read() -> None:
    made = eviction("keydiff:40")
    held = HeldPrefix(engine_for(made), made)
    held.check_protected(np.arange(20))
    with pytest.raises(BudgetError, match="40"):
        held.check_protected(np.arange(38))
    HeldPrefix(engine_for(None)).check_protected(np.arange(500))


def test_what_is_dropped_is_told_once_and_whole() -> None:
    made = eviction("keydiff:40")
    engine = engine_for(made)
    held = HeldPrefix(engine, made)
    told: list[int] = []
    for start in range(0, 200, made.block):
        dropped = held.make_room(len(IDS[start : start + made.block]), NOTHING)
        if dropped is not None:
            assert dropped.score is not None and -1 <= dropped.score <= 1
            told += dropped.tokens.tolist()
        engine.forward(Batch(IDS[start : start + made.block]))
        held.extend(IDS[start : start + made.block])
    assert len(told) == len(set(told)) == held.evicted
    assert sorted(told + engine.kv.positions.tolist()) == list(range(200))


def test_rows_by_head_are_told_when_no_head_holds_them_any_more() -> None:
    made = eviction("knorm:40:head", "head")
    engine = engine_for(made)
    held = HeldPrefix(engine, made)
    told: list[int] = []
    for start in range(0, 200, 20):
        dropped = held.make_room(20, NOTHING)
        told += dropped.tokens.tolist() if dropped is not None else []
        engine.forward(Batch(IDS[start : start + 20]))
        held.extend(IDS[start : start + 20])
    view = engine.kv.view()
    assert view.head_positions is not None
    left = set(np.concatenate([view.head_positions(layer).reshape(-1) for layer in range(SPEC.layers)]).tolist())
    assert set(told) == set(range(200)) - left


def test_closed_holes_leave_consecutive_positions_and_the_logits_of_a_shorter_text_at_layer_one() -> None:
    made = eviction("window:40")
    engine = engine_for(made)
    held = HeldPrefix(engine, made)
    read(engine, held, IDS)
    assert engine.kv.positions.tolist() == list(range(engine.kv.length))
    rows = engine.kv.length
    left = [*IDS[:4], *IDS[200 - (rows - 4) :]]  # sinks and the newest: in layer 0 keys know nothing of the others
    plain = engine_for(None)
    plain.forward(Batch(left))
    got, want = engine.kv.view().keys(0), plain.kv.view().keys(0)
    assert np.abs(got - want).max() < 1e-4


def test_closing_holes_by_hand() -> None:
    engine = engine_for(None)
    engine.forward(Batch(IDS[:20]))
    engine.kv.drop([0, 1, 5, 6, 7, 12])
    close_holes(engine.kv)
    assert engine.kv.positions.tolist() == list(range(14))
    close_holes(engine.kv)
    assert engine.kv.positions.tolist() == list(range(14))


@pytest.mark.parametrize("text", ["keydiff:40", "window:40", "keydiff:40:close", "h2o:40", "knorm:40:head"])
def test_a_longer_prompt_goes_on_where_it_was(text: str) -> None:
    made = eviction(text, "head" if "head" in text else "token")
    engine, twin = engine_for(made), engine_for(made)
    held, other = HeldPrefix(engine, made), HeldPrefix(twin, made)
    read(engine, held, IDS[:150])
    assert held.rewind_to(IDS[:180]) == 150
    got = read(engine, held, IDS[150:180])
    read(twin, other, IDS[:150])
    want = read(twin, other, IDS[150:180])
    assert np.array_equal(got, want)


@pytest.mark.parametrize("text", ["keydiff:40", "keydiff:40:close", "window:40", "tova:40", "knorm:40:head"])
def test_a_rewind_never_meets_a_hole(text: str) -> None:
    made = eviction(text, "head" if "head" in text else "token")
    for common in (199, 170, 130, 60, 12, 3, 0):
        engine = engine_for(made)
        held = HeldPrefix(engine, made)
        read(engine, held, IDS)
        start = held.rewind_to([*IDS[:common], 7, 8, 9])
        assert start <= common
        assert list(held.ids) == IDS[:start]
        view = engine.kv.view()
        heads = view.head_positions
        if made.positions == "keep":
            assert engine.kv.next_position == start, "the next token gets the position of its place in the text"
            if heads is not None:
                last = {int(row[-1]) for layer in range(SPEC.layers) for row in heads(layer)}
                assert last == {start - 1}
        else:
            assert engine.kv.next_position == engine.kv.length
        logits = read(engine, held, [*IDS[start:common], 7, 8, 9])
        assert np.isfinite(logits).all()
        if start == 0:
            plain = engine_for(None)
            assert np.abs(logits - plain.forward(Batch([*IDS[:common], 7, 8, 9]))).max() < 1e-4 or common > 40
            assert held.evicted == 0 or common > 40


def test_an_edit_at_the_end_costs_only_what_follows_it() -> None:
    made = eviction("keydiff:40")
    engine = engine_for(made)
    held = HeldPrefix(engine, made)
    read(engine, held, IDS)
    assert held.rewind_to([*IDS[:196], 5, 5, 5, 5]) == 196, "the newest rows are always held"


def test_without_eviction_nothing_has_changed() -> None:
    engine = engine_for(None)
    held = HeldPrefix(engine)
    assert held.piece(150) == 150
    assert held.make_room(150, NOTHING) is None
    engine.forward(Batch(IDS[:150]))
    held.extend(IDS[:150])
    assert held.rewind_to([*IDS[:99], 5, 5]) == 99
    assert engine.kv.length == 99
    held.clear()
    assert engine.kv.length == 0 and list(held.ids) == []


def test_positions_beyond_what_the_model_was_made_for_close_the_holes_or_say_so() -> None:
    spec = dataclasses.replace(SPEC, context=128)
    made = eviction("keydiff:40", context=128)
    engine = engine_for(made, spec)
    held = HeldPrefix(engine, made)
    read(engine, held, IDS)
    assert engine.kv.next_position <= 128
    by_head = eviction("keydiff:40:head", "head", context=128)
    stuck = engine_for(by_head, spec)
    with pytest.raises(ContextOverflow, match="128"):
        read(stuck, HeldPrefix(stuck, by_head), IDS)


def test_an_engine_that_cannot_is_named() -> None:
    made = eviction("tova:40")
    engine = engine_for(made)
    engine.capabilities = dataclasses.replace(engine.capabilities, attention=False)
    with pytest.raises(PlanError, match="attention"):
        HeldPrefix(engine, made)
    for missing, words, text in (
        ({"drop": "none"}, "dropped", "window:40"), ({"keys": False}, "keys", "knorm:40"),
        ({"shift": False}, "move", "window:40"), ({"drop": "token"}, "heads", "knorm:40:head"),
    ):  # fmt: skip
        made = eviction(text, "head")
        engine = engine_for(made)
        engine.capabilities = dataclasses.replace(engine.capabilities, **missing)
        with pytest.raises(PlanError, match=words) as caught:
            HeldPrefix(engine, made)
        assert caught.value.clash is not None
