"""Only what is new is written, while nothing before it changes; what lies on disk is always all of the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.session_models import session_model
from wattwise.conversation import Conversation
from wattwise.model import Model
from wattwise.sessions import rows as rows_module
from wattwise.sessions.index import RowsIndex
from wattwise.sessions.library import Library

GREEDY = {"temperature": 0, "max_tokens": 8}


class Exports:
    """The ranges of rows that a model's store has given out."""

    def __init__(self, model: Model) -> None:
        self.ranges: list[tuple[int, int]] = []
        self._export = model.held.export_rows
        model.held.export_rows = self._note  # type: ignore[method-assign]

    def _note(self, first: int, stop: int) -> bytes:
        self.ranges.append((first, stop))
        return self._export(first, stop)


def index_of(library: Library, chat: Conversation) -> RowsIndex:
    assert chat.session is not None
    index = library.index(chat.session.id)
    assert index is not None
    return index


def stored(library: Library, chat: Conversation) -> list[bytes]:
    return [library.blobs.get(segment.blob) for segment in index_of(library, chat).segments]


def test_each_turn_writes_one_more_file_and_leaves_the_others(models: Path, library: Library) -> None:
    with session_model(models) as model:
        exports = Exports(model)
        chat = model.conversation("Be brief.", session="new")
        ends, before = [], {}
        for turn in range(4):
            reply = chat.say(f"Tell me of {turn}.", **GREEDY)
            now = library.blobs.sizes()
            assert before.items() <= now.items() and len(now) == len(before) + 1
            ends.append(reply.stats.kv_tokens)
            before = now
        assert exports.ranges == list(zip([0, *ends], ends, strict=False)), "only rows since the last save"
        index = index_of(library, chat)
        assert [segment.stop for segment in index.segments] == ends
        assert index.state.ids.tolist() == list(model.held.ids)
        whole = model.engine.kv.export()
        model.forget()
        for part in stored(library, chat):
            model.engine.kv.restore(part)
        assert model.engine.kv.export() == whole, "together they are one export of everything"


def test_a_turn_taken_back_is_written_over(models: Path, library: Library) -> None:
    with session_model(models) as model:
        exports = Exports(model)
        chat = model.conversation(session="new")
        first = chat.say("One.", **GREEDY).stats.kv_tokens
        chat.say("Two.", **GREEDY)
        chat.undo()
        last = chat.say("Other.", **GREEDY).stats.kv_tokens
        assert exports.ranges[-1] == (first, last)
        assert len(library.blobs.sizes()) == 2, "the file of the turn that was taken back is gone"
        exports.ranges.clear()
        chat.regenerate(temperature=1.0, seed=3, max_tokens=8).run()
        assert exports.ranges[0][0] == first, "the last turn's file holds rows that have changed"


def test_an_eviction_writes_all_rows_again(models: Path, library: Library) -> None:
    with session_model(models, kv_policy="keydiff:96:token") as model:
        exports = Exports(model)
        chat = model.conversation(session="new")
        short = chat.say("Hi.", **GREEDY)
        assert short.stats.kv_evicted == 0
        long = chat.say("The quick brown fox jumps over the lazy dog. " * 4, **GREEDY)
        assert long.stats.kv_evicted > 0
        assert exports.ranges == [(0, short.stats.kv_tokens), (0, model.engine.kv.length)]
        assert len(library.blobs.sizes()) == 1
        before = exports.ranges[-1][1]
        after = chat.say("So?", temperature=0, max_tokens=2)
        if after.stats.kv_evicted == long.stats.kv_evicted:
            assert exports.ranges[-1] == (before, model.engine.kv.length)


def test_rows_by_head_go_out_together(models: Path, library: Library) -> None:
    with session_model(models, kv_policy="keydiff:96:head") as model:
        exports = Exports(model)
        chat = model.conversation(session="new")
        chat.say("The quick brown fox jumps over the lazy dog. " * 4, **GREEDY)
        chat.say("So?", temperature=0, max_tokens=2)
        assert [first for first, _ in exports.ranges] == [0, 0]
        assert len(index_of(library, chat).segments) == 1


def test_many_small_files_become_few(models: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_MOST_SEGMENTS", 3)
    with session_model(models) as model:
        chat = model.conversation(session="new")
        counts = []
        for turn in range(5):
            chat.say(f"{turn}", **GREEDY)
            counts.append(len(index_of(library, chat).segments))
        assert counts == [1, 2, 3, 1, 2]
        assert len(library.blobs.sizes()) == 2


def test_long_texts_are_exported_in_parts(models: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    with session_model(models) as model:
        row = model.engine.kv.nbytes // model.engine.kv.capacity_tokens
        monkeypatch.setattr(rows_module, "_SEGMENT_BYTES", 50 * row)
        exports = Exports(model)
        chat = model.conversation(session="new")
        length = chat.say("x" * 120, **GREEDY).stats.kv_tokens
        assert exports.ranges == [(0, 50), (50, 100), (100, length)]


def test_files_that_have_gone_are_written_again(models: Path, library: Library) -> None:
    with session_model(models) as model:
        chat = model.conversation(session="new")
        chat.say("One.", **GREEDY)
        second = chat.say("Two.", **GREEDY).stats.kv_tokens
        gone = index_of(library, chat).segments[1]
        library.blobs.remove(gone.blob.name)
        exports = Exports(model)
        chat.say("Three.", **GREEDY)
        assert exports.ranges[0][0] == gone.start < second
        assert all(library.blobs.has(blob) for blob in index_of(library, chat).blobs)


def test_sessions_share_the_files_of_what_they_share(models: Path, library: Library) -> None:
    with session_model(models) as model:
        chat = model.conversation(session="new")
        chat.say("One.", **GREEDY)
        copy = model.conversation(session=chat.session.id)  # the first one has it open: a copy
        copy.say("Two.", **GREEDY)
        mine, theirs = index_of(library, chat), index_of(library, copy)
        assert theirs.segments[0] == mine.segments[0]
        assert len(library.blobs.sizes()) == 2


def test_a_conversation_comes_back_after_another_has_used_the_model(models: Path, library: Library) -> None:
    with session_model(models) as model:
        chat, other = model.conversation(session="new"), model.conversation(session="new")
        chat.say("A text that is long enough to be worth it.", **GREEDY)
        length = model.engine.kv.length
        other.say("Something else altogether.", **GREEDY)
        reply = chat.say("And?", **GREEDY)
        assert "SessionResumed" in [type(event).__name__ for event in reply.events]
        assert reply.stats.cache_n >= length - 8, "restored tokens are counted as reused"
        fresh = session_model(models)
        with fresh:
            again = fresh.chat([*chat.messages[:-1]], **GREEDY)
        assert again.ids == reply.ids


def test_the_index_says_what_the_store_holds(models: Path, library: Library) -> None:
    with session_model(models, kv_policy="h2o:96:token") as model:
        chat = model.conversation(session="new")
        chat.say("The quick brown fox jumps over the lazy dog. " * 4, **GREEDY)
        index, state = index_of(library, chat), model.held.snapshot()
        assert np.array_equal(index.state.ids, state.ids) and np.array_equal(index.state.tokens, state.tokens)
        assert (index.state.rows, index.state.evicted) == (state.rows, state.evicted)
        assert index.attention is not None


def test_an_answer_to_json_is_plain(models: Path) -> None:
    with session_model(models) as model:
        reply = model.conversation(session="new").say("One.", **GREEDY)
    events: list[dict[str, Any]] = json.loads(json.dumps(reply.to_json()))["events"]
    assert [event["kind"] for event in events] == ["SessionSaved"]
