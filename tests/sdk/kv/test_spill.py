"""Evicted messages on disk: within their cap, back where they were bit by bit, and never more than a shortcut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.chat_model import tiny_model
from support.specs import TINY_SPECS, random_weights
from wattwise.conversation import Conversation
from wattwise.events import BroughtBack, Event, Evicted, ReadAgain, SpillFailed
from wattwise.kv.eviction import parse_eviction
from wattwise.kv.spill import Spill
from wattwise.model import Model
from wattwise.prefix import NO_TOKENS, HeldPrefix
from wattwise_devices.errors import PlanError
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine

SPEC = dataclasses.replace(TINY_SPECS["llama"], context=512)
WEIGHTS = random_weights(SPEC)
IDS = [int(i) for i in np.random.default_rng(1).integers(3, SPEC.vocab, 200)]
MESSAGES = [(i, i + 20) for i in range(0, 200, 20)]


def held_with(spill: Spill, policy: str = "keydiff:64:token") -> tuple[ReferenceEngine, HeldPrefix]:
    made = parse_eviction(policy).resolve(context=512, row_bytes=1, level="head")
    load = LoadSpec(context=made.rows, chunk=made.block, kv_type="f32")
    engine = ReferenceEngine(SPEC, WEIGHTS, load)
    return engine, HeldPrefix(engine, made, spill=spill)


def read(engine: ReferenceEngine, held: HeldPrefix, ids: list[int], protected: np.ndarray = NO_TOKENS) -> None:
    done = 0
    while done < len(ids):
        piece = held.piece(len(ids) - done)
        held.make_room(piece, protected, MESSAGES)
        engine.forward(Batch(ids[done : done + piece], logits="none"))
        held.extend(ids[done : done + piece])
        done += piece


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[Spill]:
    with Spill(tmp_path, 1 << 20) as made:
        yield made


@pytest.mark.parametrize("policy", ["keydiff:64:token", "tova:64:token", "h2o:64:token", "window:64:keep:token"])
def test_a_message_comes_back_in_its_place_as_it_was(policy: str, spill: Spill) -> None:
    engine, held = held_with(spill, policy)
    read(engine, held, IDS)
    plain = ReferenceEngine(SPEC, WEIGHTS, LoadSpec(context=256, chunk=32, kv_type="f32"))
    plain.forward(Batch(IDS[:60], logits="none"))
    missing = held.missing(np.arange(20, 40))
    assert missing.size, "the test needs a message that has lost rows"
    assert held.bring_back(20, 40, np.arange(4))
    assert not held.missing(np.arange(20, 40)).size
    assert engine.kv.length + held.evicted == 200
    assert engine.kv.length <= engine.kv.capacity_tokens
    assert np.all(np.diff(engine.kv.positions) > 0)
    at = np.searchsorted(engine.kv.positions, np.arange(20, 40))
    keys, want = engine.kv.view().keys, plain.kv.view().keys
    assert keys is not None and want is not None
    assert np.allclose(keys(1)[:, at], want(1)[:, 20:40], atol=1e-5), "as they were before anything was lost"
    read(engine, held, [5, 6, 7], np.arange(20, 40))
    assert not held.bring_back(20, 40, NO_TOKENS), "what came back is not on disk any more"


def test_the_cap_is_kept_and_the_oldest_goes_first(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 1000)
    for start in range(0, 50, 10):
        assert spill.put((start, start + 10), bytes([start]) * 300)
        assert spill.nbytes <= 1000
    assert (0, 10) not in spill and (10, 20) not in spill
    assert spill.take((40, 50)) == bytes([40]) * 300
    assert spill.take((40, 50)) is None
    assert not spill.put((90, 99), b"x" * 1001) and spill.problem is not None and "1000" in spill.problem
    assert list(tmp_path.iterdir()) == [], "files without names are gone with the process"
    spill.cut(25)
    assert (20, 30) not in spill and (30, 40) not in spill
    spill.put((0, 10), b"y")
    spill.clear()
    assert spill.nbytes == 0


def test_a_folder_that_cannot_be_is_a_reason_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spill = Spill(tmp_path / "file" / "folder", 1000)
    assert not spill.put((0, 10), b"x")
    assert spill.problem


def test_a_text_that_changed_takes_its_spilled_messages_along(spill: Spill) -> None:
    engine, held = held_with(spill)
    read(engine, held, IDS)
    assert (100, 120) in spill and (0, 20) in spill
    held.rewind_to([*IDS[:90], 7, 8])
    assert (100, 120) not in spill
    held.clear()
    assert spill.nbytes == 0


def test_what_cannot_be_brought_back_is_refused_by_name(tmp_path: Path) -> None:
    for policy, word in (("keydiff:64:head", ":token"), ("window:64", ":keep")):
        with pytest.raises(PlanError, match=word):
            held_with(Spill(tmp_path, 1000), policy)


# ---------------------------------------------------------------- in conversations


def talked(cap: int) -> tuple[Model, Conversation, list[Event]]:
    """A model and a conversation whose first message has lost rows; and the events so far."""
    model = tiny_model(kv_policy="knorm:160:token", kv_spill=cap)
    chat = model.conversation("Be brief.")
    chat.say("My name is Ann and I live here.", max_tokens=8, temperature=0)
    events: list[Event] = []
    lost: set[int] = set()
    while 1 not in lost:
        reply = chat.say("The quick brown fox jumps over the lazy dog. And again.", max_tokens=8, temperature=0)
        events += reply.events
        lost |= {i for event in reply.events if isinstance(event, Evicted) for i, _ in event.messages}
    return model, chat, events


def test_a_pinned_message_comes_back_from_disk_and_nothing_is_read_again() -> None:
    model, chat, _ = talked(1 << 20)
    with model:
        chat.pinned.add(1)
        reply = chat.say("Who am I?", max_tokens=8, temperature=0)
        back = [event for event in reply.events if isinstance(event, BroughtBack)]
        assert len(back) == 1 and back[0].messages == (1,) and back[0].tokens > 0
        assert not any(isinstance(event, ReadAgain) for event in reply.events)
        assert reply.stats.prompt_n < 60, "only the new turn was read"


def test_without_room_on_disk_it_is_told_and_the_text_is_read_again() -> None:
    model, chat, events = talked(100)
    with model:
        assert any(isinstance(event, SpillFailed) and "100" in event.reason for event in events)
        chat.pinned.add(1)
        reply = chat.say("Who am I?", max_tokens=8, temperature=0)
        assert [type(event) for event in reply.events if isinstance(event, (BroughtBack, ReadAgain))] == [ReadAgain]
