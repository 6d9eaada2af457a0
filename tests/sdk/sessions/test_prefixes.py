"""The longest common prefix over all sessions: the best is taken, and only what is right for the prompt."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.session_models import session_model
from wattwise.events import SessionResumed
from wattwise.kv.held_state import HeldState
from wattwise.reply import Reply
from wattwise.sessions.blobs import Blob
from wattwise.sessions.fingerprint import Fingerprint
from wattwise.sessions.index import RowsIndex, Segment, write_index
from wattwise.sessions.library import Library
from wattwise.sessions.prefixes import Match, Wanted, matches
from wattwise_runtimes.contracts import Batch

GREEDY = {"temperature": 0, "max_tokens": 6}
MARK = Fingerprint(model="m", tokenizer="t", spec="s", rope="r", engine="e", kv_type="f32", eviction="none")
TEXT = list(range(1000, 1400))


def put(
    library: Library, session: str, ids: Sequence[int], *, ends: Sequence[int] = (), rows: int | None = None,
    attention: bool = False, **state: Any,
) -> None:  # fmt: skip
    """An index as `ModelRows` would write it; the files that it names are not there."""
    rows = len(ids) if rows is None else rows
    bounds = [0, *ends, rows]
    blob = Blob(name="0" * 64, nbytes=1)
    segments = [Segment(blob=blob, start=a, stop=b) for a, b in pairwise(bounds)]
    held = HeldState(ids=np.asarray(ids, np.int32), rows=rows, **state)
    (library.root / session).mkdir(parents=True, exist_ok=True)
    index = RowsIndex(
        fingerprint=MARK, state=held, segments=tuple(segments), attention=blob if attention else None, queries=0
    )
    write_index(library.index_path(session), index)


def found(library: Library, prompt: Sequence[int], own: str | None = None, **wanted: Any) -> list[Match]:
    usual: dict[str, Any] = {"protected": np.zeros(0, np.int64), "capacity_rows": 10_000, "held": 0, **wanted}
    return matches(library, library.ids(), Wanted(prompt=np.asarray(prompt, np.int32), own=own, **usual))


A, B, C = "aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"


def test_the_longest_comes_first_and_its_own_wins_a_tie(library: Library) -> None:
    put(library, A, TEXT[:100])
    put(library, B, [*TEXT[:150], 7, 7])
    put(library, C, [*TEXT[:150], 8])
    assert [(m.session, m.tokens) for m in found(library, TEXT)] == [(C, 150), (B, 150), (A, 100)]
    assert found(library, TEXT, own=B)[0].session == B
    assert [m.tokens for m in found(library, TEXT[:120])] == [119, 119, 100], "the last token has to be computed"
    assert found(library, [5, 6, 7]) == []


def test_only_what_spares_enough(library: Library) -> None:
    put(library, A, TEXT[:100])
    assert found(library, TEXT, held=84)[0].tokens == 100
    assert found(library, TEXT, held=85) == [], "fifteen tokens are computed sooner than found"
    assert found(library, TEXT, own=A, held=98)[0].tokens == 100
    assert found(library, TEXT, own=A, held=100) == []
    put(library, B, [*TEXT[:20], *range(5000)])
    assert [m.session for m in found(library, TEXT[:21])] == [A], "five thousand rows for twenty tokens are not"


def test_files_behind_the_common_part_are_left_out(library: Library) -> None:
    put(library, A, TEXT[:300], ends=(50, 100, 200))
    (match,) = found(library, [*TEXT[:120], 1, 2, 3])
    assert [s.stop for s in match.segments] == [50, 100, 200]
    assert (match.tokens, match.state.rows, match.cut) == (120, 200, None)
    (match,) = found(library, TEXT, capacity_rows=150)
    assert (match.tokens, match.state.rows) == (100, 100), "as many as the store can hold"
    (match,) = found(library, [*TEXT[:120], 1, 2, 3], ends_only=True)
    assert (match.tokens, match.state.rows) == (100, 100)
    assert found(library, [*TEXT[:40], 1, 2, 3], ends_only=True) == []


def test_below_a_hole_only_what_is_unbroken_is_anybodys(library: Library) -> None:
    tokens = np.asarray([*range(60), *range(150, 200)])
    put(library, A, TEXT[:200], rows=110, tokens=tokens, evicted=90)
    (whole,) = found(library, TEXT)
    assert (whole.tokens, whole.cut) == (200, None), "a text that goes on from all of it may"
    (part,) = found(library, TEXT, protected=np.asarray([100]))
    assert (part.tokens, part.cut) == (60, 60), "but not where what must stay has gone"
    assert found(library, TEXT, protected=np.asarray([10, 160, 390]))[0].tokens == 200
    (other,) = found(library, [*TEXT[:170], 1, 2, 3])
    assert (other.tokens, other.cut, other.state.rows) == (60, 60, 110)
    (own,) = found(library, [*TEXT[:170], 1, 2, 3], own=A)
    assert (own.tokens, own.cut) == (170, None), "its own text goes back as it would have"
    (own,) = found(library, [*TEXT[:100], 1, 2, 3], own=A)
    assert own.tokens == 60


def test_sums_of_attention_speak_of_what_came_later(library: Library) -> None:
    put(library, A, TEXT[:200], attention=True)
    assert found(library, TEXT)[0].tokens == 200
    assert found(library, [*TEXT[:170], 1, 2, 3]) == []
    assert found(library, [*TEXT[:170], 1, 2, 3], own=A)[0].tokens == 170


def test_damaged_indexes_count_for_nothing(library: Library) -> None:
    put(library, A, TEXT[:100])
    put(library, B, TEXT[:200])
    library.index_path(B).write_bytes(b"nonsense" * 20)
    assert [m.session for m in found(library, TEXT)] == [A]


def test_hundreds_of_sessions_are_searched_in_no_time(library: Library) -> None:
    for number in range(400):
        put(library, f"{number:012x}", [*TEXT[:60], *range(number, number + 2000)])
    prompt = [*TEXT[:60], *range(317, 2317), 5, 5]
    found(library, prompt)
    began = time.process_time()
    best = found(library, prompt)[0]
    assert time.process_time() - began < 0.5
    assert (best.session, best.tokens) == (f"{317:012x}", 2060)


def test_what_is_kept_in_memory_is_bounded(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    from wattwise.sessions import library as module

    monkeypatch.setattr(module, "_CACHED_IDS", 500)
    for number in range(20):
        put(library, f"{number:012x}", [*TEXT[:100], number])
    for _ in range(2):
        assert len(found(library, TEXT)) == 20
        assert sum(len(index.state.ids) for _, index in library._indexes.values()) <= 700


def resumed_from(reply: Reply) -> list[tuple[str, int]]:
    return [(event.session, event.tokens) for event in reply.events if isinstance(event, SessionResumed)]


def test_a_new_conversation_takes_the_best_of_several(models: Path, library: Library) -> None:
    system = "You are a very helpful assistant, and you answer in rhymes."
    sessions = {}
    with session_model(models) as model:
        for text in ("What is the sea?", "What is the sky?", "Who are you?"):
            chat = model.conversation(system, session="new")
            chat.say(text, **GREEDY)
            sessions[text] = chat.session.id
        model.conversation("Other.", session="new").say("What is the sky made of?", **GREEDY)
    with session_model(models) as model:
        chat = model.conversation(system, session="new")
        reply = chat.say("What is the sky made of?", **GREEDY)
        ((session, tokens),) = resumed_from(reply)
        assert session == sessions["What is the sky?"]
        assert reply.stats.cache_n == tokens >= len(system) + len("What is the sky")
        assert reply.stats.prompt_n + tokens == len(model.prompt_ids(chat.messages[:-1]))
    with session_model(models) as model:
        assert model.chat(chat.messages[:-1], **GREEDY).ids == reply.ids, "as if everything had been computed"


def test_a_conversation_that_is_not_saved_looks_for_nothing(models: Path, library: Library) -> None:
    with session_model(models) as model:
        model.conversation("Be brief, be kind, be clear.", session="new").say("Hello, my friend.", **GREEDY)
    with session_model(models) as model:
        reply = model.conversation("Be brief, be kind, be clear.").say("Hello, my friend.", **GREEDY)
        assert (resumed_from(reply), reply.stats.cache_n) == ([], 0)


@pytest.mark.parametrize("policy", ["keydiff:96:token:keep", "keydiff:96:token:close", "keydiff:96:head"])
def test_another_text_gets_only_what_is_below_the_first_hole(policy: str, models: Path, library: Library) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 4
    with session_model(models, kv_policy=policy) as model:
        chat = model.conversation("You are kind.", session="new")  # protected: it stays unbroken
        chat.say(text, **GREEDY)
        unbroken = model.held.snapshot().unbroken
        assert unbroken >= 16
    other = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": text[:150] + "Quite another end."},
    ]
    with session_model(models, kv_policy=policy) as model:
        chat = model.conversation("You are kind.", session="new")
        reply = chat.say(other[1]["content"], **GREEDY)
        ((_, tokens),) = resumed_from(reply)
        assert tokens == unbroken == reply.stats.cache_n
        state = model.held.snapshot()
    with session_model(models, kv_policy=policy) as model:
        begun = model.prompt_ids(other)[:tokens]
        model.engine.forward(Batch(begun))
        model.held.extend(begun)
        fresh = model.chat(other, **GREEDY)
        assert (fresh.stats.cache_n, fresh.ids) == (tokens, reply.ids)
        assert fresh.stats.kv_evicted == reply.stats.kv_evicted > 0
        again = model.held.snapshot()
        assert again.tokens is not None and np.array_equal(again.tokens, state.tokens), "the same rows were evicted"


def test_pins_that_an_old_session_has_evicted_are_read_again(models: Path, library: Library) -> None:
    messages = ["My name is Ann, and I like tea.", "The quick brown fox jumps over the lazy dog. " * 4]
    with session_model(models, kv_policy="keydiff:96:token:keep") as model:
        chat = model.conversation(session="new")
        for text in messages:
            chat.say(text, **GREEDY)
        saved = chat.session
        held = model.held.snapshot().tokens
        assert held is not None and not np.isin(np.arange(20, 40), held).all(), "some of the first message has gone"
    with session_model(models, kv_policy="keydiff:96:token:keep") as model:
        chat = model.conversation(session="new")
        chat.messages, chat.pinned = [dict(m) for m in saved.messages], {0}
        reply = chat.say("So?", **GREEDY)
        assert all(tokens < 20 for _, tokens in resumed_from(reply))
        state = model.held.snapshot()
        span = model.prompt_ids(chat.messages[:1])
        assert np.isin(np.arange(len(span) - 12), state.tokens).all(), "the pinned message is there"


def test_rows_are_found_again_by_a_model_that_was_loaded_with_less_room(models: Path, library: Library) -> None:
    with session_model(models, context=512) as model:
        chat = model.conversation(session="new")
        for text in ("a" * 60, "b" * 60, "c" * 60):
            chat.say(text, **GREEDY)
        first = chat.messages[:2]
    with session_model(models, context=130) as model:
        chat = model.conversation(session="new")
        chat.messages = [dict(message) for message in first]
        reply = chat.say("x", **GREEDY)
        assert resumed_from(reply) and not [e for e in reply.events if "Refused" in type(e).__name__]


def test_matches_know_nothing_of_other_models(library: Library) -> None:
    assert dataclasses.replace(MARK, model="other").differences(MARK) == "another model file"
