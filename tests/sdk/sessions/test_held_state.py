"""A held text taken apart and put together again in another store goes on bit by bit as the first one does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from support.specs import TINY_SPECS, random_weights
from wattwise.kv.eviction import Eviction, parse_eviction
from wattwise.kv.held_state import HeldState, SeenAttention
from wattwise.kv.policy import policy_names
from wattwise.prefix import NO_TOKENS, HeldPrefix
from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine

SPEC = dataclasses.replace(TINY_SPECS["llama"], context=256)
WEIGHTS = random_weights(SPEC)
IDS = [int(i) for i in np.random.default_rng(1).integers(3, SPEC.vocab, 240)]


def made(text: str | None) -> Eviction | None:
    return parse_eviction(text).resolve(context=256, row_bytes=1, level="head") if text is not None else None


def store(text: str | None) -> tuple[ReferenceEngine, HeldPrefix]:
    eviction = made(text)
    rows, chunk = (eviction.rows, eviction.block) if eviction is not None else (256, 16)
    engine = ReferenceEngine(SPEC, WEIGHTS, LoadSpec(context=rows, chunk=chunk, kv_type="f32"))
    return engine, HeldPrefix(engine, eviction)


def read(engine: ReferenceEngine, held: HeldPrefix, ids: list[int]) -> np.ndarray:
    """As generation does; the logits of every call."""
    logits = []
    while ids:
        piece = held.piece(len(ids))
        held.make_room(piece, NO_TOKENS)
        logits.append(engine.forward(Batch(ids[:piece], logits="all")).copy())
        held.extend(ids[:piece])
        ids = ids[piece:]
    return np.concatenate(logits)


def resumed(held: HeldPrefix, text: str | None, cuts: tuple[int, ...] = ()) -> tuple[ReferenceEngine, HeldPrefix]:
    """Another store that takes over, with the rows in parts cut at these numbers."""
    engine, other = store(text)
    state = held.snapshot()
    bounds = [0, *cuts, held.rows]
    rows = [held.export_rows(a, b) for a, b in pairwise(bounds)]
    copied = None
    if state.attention is not None:
        copied = SeenAttention(
            **{name: getattr(state.attention, name).copy() for name in ("total", "chances", "recent")}
        )
    other.resume(dataclasses.replace(state, attention=copied), rows)
    return engine, other


POLICIES = [
    None,
    *(f"{name}:40:{how}" for name in policy_names() for how in ("token:keep", "token:close", "head:keep")),
]


@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("length", [30, 170])
def test_it_goes_on_identically(text: str | None, length: int) -> None:
    engine, held = store(text)
    read(engine, held, IDS[:length])
    twin, other = resumed(held, text)
    assert (list(other.ids), other.rows, other.evicted) == (list(held.ids), held.rows, held.evicted)
    for prompt in (IDS[:200], [*IDS[:195], 5, 6, 7, 8], [*IDS[:190], 9, 9]):  # on, a little back, further back
        start, start_other = held.rewind_to(prompt), other.rewind_to(prompt)
        assert start == start_other
        want, got = read(engine, held, prompt[start:]), read(twin, other, prompt[start:])
        assert np.array_equal(want, got)
        assert (other.evicted, other.rows) == (held.evicted, held.rows)


@pytest.mark.parametrize("text", [None, "keydiff:40:token:keep", "window:40", "h2o:40:token:keep"])
def test_rows_may_come_in_parts(text: str | None) -> None:
    engine, held = store(text)
    read(engine, held, IDS[:150])
    twin, other = resumed(held, text, cuts=(1, 17, 40))
    assert np.array_equal(read(engine, held, IDS[150:180]), read(twin, other, IDS[150:180]))


def test_a_text_that_was_taken_back_far_remembers_what_it_has_lost() -> None:
    engine, held = store("keydiff:40:token:keep")
    read(engine, held, IDS[:200])
    start = held.rewind_to([*IDS[:60], 1, 1])
    read(engine, held, [*IDS[start:60], 1, 1])
    assert held.evicted > len(held.ids)
    twin, other = resumed(held, "keydiff:40:token:keep")
    assert other.evicted == held.evicted
    assert np.array_equal(read(engine, held, IDS[60:120]), read(twin, other, IDS[60:120]))


def test_what_is_unchanged_since_a_mark() -> None:
    engine, held = store("keydiff:40:token")
    read(engine, held, IDS[:30])
    assert held.unchanged == 0
    held.mark()
    read(engine, held, IDS[30:40])
    assert (held.unchanged, held.rows) == (30, 40), "new rows are behind the mark"
    held.rewind_to([*IDS[:25], 1, 1])
    assert held.unchanged == 25
    read(engine, held, IDS[25:200])
    assert held.unchanged == 0, "an eviction moves everything"
    held.mark()
    assert held.unchanged == held.rows
    held.clear()
    assert held.unchanged == 0


def test_cutting_off_what_follows_the_first_hole() -> None:
    engine, held = store("keydiff:40:token:keep")
    read(engine, held, IDS[:170])
    unbroken = held.snapshot().unbroken
    assert 4 <= unbroken < held.rows, "the sinks at least"
    held.cut(unbroken)
    assert (list(held.ids), held.evicted, held.snapshot().tokens) == (IDS[:unbroken], 0, None)
    plain, whole = store(None)
    want = read(plain, whole, IDS[:60])[unbroken:]
    assert np.abs(read(engine, held, IDS[unbroken:44]) - want[: 44 - unbroken]).max() < 1e-4


def test_rows_that_cannot_be_rewound_into_are_read_again() -> None:
    engine, held = store(None)
    read(engine, held, IDS[:50])
    state, rows = held.snapshot(), held.export_rows(0, 50)
    held.resume(state, [rows], can_rewind=False)
    assert held.rewind_to([*IDS[:60]]) == 50
    read(engine, held, IDS[50:60])
    assert held.rewind_to([*IDS[:55], 1, 1]) == 55, "rows that were computed here may go"
    assert held.reusable([*IDS[:49], 1, 1]) == held.rewind_to([*IDS[:49], 1, 1]) == 0
    read(engine, held, IDS[:50])
    assert held.rewind_to([*IDS[:20], 1, 1]) == 20


Change = Callable[[HeldState], HeldState]


@pytest.mark.parametrize(
    ("text", "change"),
    [
        (None, lambda s: dataclasses.replace(s, rows=3)),
        (None, lambda s: dataclasses.replace(s, ids=s.ids[:-1])),
        (None, lambda s: dataclasses.replace(s, ids=s.ids - 300)),
        (None, lambda s: dataclasses.replace(s, ids=s.ids + 300)),
        (None, lambda s: dataclasses.replace(s, tokens=np.arange(len(s.ids)))),
        (None, lambda s: dataclasses.replace(s, evicted=-1)),
        ("keydiff:40:token", lambda s: dataclasses.replace(s, tokens=None)),
        ("keydiff:40:token", lambda s: dataclasses.replace(s, tokens=s.tokens[::-1].copy())),
        ("keydiff:40:token", lambda s: dataclasses.replace(s, tokens=s.tokens[:-1])),
        ("keydiff:40:token", lambda s: dataclasses.replace(s, tokens=s.tokens - 1)),
        ("keydiff:40:token", lambda s: dataclasses.replace(s, tokens=s.tokens[:0])),
        ("keydiff:40:head", lambda s: dataclasses.replace(s, tokens=s.tokens[1:])),
        ("h2o:40:token", lambda s: dataclasses.replace(s, attention=None)),
        ("h2o:40:token", lambda s: dataclasses.replace(
            s, attention=dataclasses.replace(s.attention, total=s.attention.total[:, :, 1:]))),
        ("tova:40:token", lambda s: dataclasses.replace(
            s, attention=dataclasses.replace(s.attention, recent=np.zeros((3, 4, 99, s.rows), np.float32)))),
    ],
)  # fmt: skip
def test_parts_that_do_not_belong_together_are_refused_and_nothing_is_held(text: str | None, change: Change) -> None:
    engine, held = store(text)
    read(engine, held, IDS[:170])
    state, rows = held.snapshot(), held.export_rows(0, held.rows)
    other_engine, other = store(text)
    with pytest.raises(CorruptArtifact):
        other.resume(change(state), [rows])
    assert (other_engine.kv.length, list(other.ids), other.unchanged) == (0, [], 0)
    read(other_engine, other, IDS[:60])  # and it works


def test_rows_of_another_shape_are_refused() -> None:
    engine, held = store(None)
    read(engine, held, IDS[:20])
    _, other = store("keydiff:40:token")
    for rows in ([], [held.export_rows(0, 10)], [held.export_rows(0, 20)] * 2, [b"rows"]):
        with pytest.raises(CorruptArtifact):
            other.resume(held.snapshot(), rows)
        assert other.rows == 0
