"""The cap on saved rows: never exceeded, least recently used first, texts untouched; and no litter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from support.session_models import session_model
from wattwise.conversation import Conversation
from wattwise.events import SessionNotSaved, SessionRefused, SessionResumed
from wattwise.model import Model
from wattwise.sessions.blobs import Blobs
from wattwise.sessions.library import Library
from wattwise.sessions.room import Room, delete_session
from wattwise_devices.errors import SessionError

GREEDY = {"temperature": 0, "max_tokens": 4}
TEXT = "x" * 100


def capped(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setenv("WATTWISE_SESSIONS_BYTES", str(nbytes))


def talk(model: Model, text: str) -> Conversation:
    chat = model.conversation(session="new")
    chat.say(text + TEXT, **GREEDY)
    return chat


def kept(library: Library) -> set[str]:
    return {session for session in library.ids() if library.index(session) is not None}


def taken(library: Library) -> int:
    return sum(library.blobs.sizes().values()) + sum(library.index_path(s).stat().st_size for s in kept(library))


MARGIN = 100 << 10  # before rows are exported they are counted with the most that a header can take


@pytest.fixture
def one_bytes(models: Path, library: Library) -> int:
    """What the rows of such a conversation of one turn take."""
    with session_model(models) as model:
        chat = talk(model, "0")
        needed = taken(library)
        chat.close()
        delete_session(library, chat.session.id)
    assert taken(library) == 0
    return needed


def test_the_least_recently_used_goes_first(
    models: Path, library: Library, one_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap = int(2.2 * one_bytes) + MARGIN
    capped(monkeypatch, cap)
    written = Blobs.put

    def checked(self: Blobs, data: bytes) -> Any:
        blob = written(self, data)
        assert taken(library) <= cap, "not even for a moment"
        return blob

    monkeypatch.setattr(Blobs, "put", checked)
    with session_model(models) as model:
        chats = [talk(model, str(number)) for number in range(3)]
        names = [chat.session.id for chat in chats]
        assert kept(library) == set(names[-len(kept(library)) :]), "the newest are there"
        left = [name for name in names if name in kept(library)]
        assert len(left) == 2
        model.forget()
        chats[names.index(left[0])].say("on", **GREEDY)  # the oldest that is left is used, and so not the next to go
        other = talk(model, "other")
        assert other.session.id in kept(library) and left[1] not in kept(library)
        assert taken(library) <= cap
        for chat in chats:
            assert library.read(chat.session.id).messages == chat.messages, "texts stay"


def test_reading_counts_as_use(models: Path, library: Library) -> None:
    with session_model(models) as model:
        first, second = talk(model, "1").session.id, talk(model, "2").session.id
    for number, name in enumerate((first, second)):
        os.utime(library.index_path(name), ns=(number, number))
    with session_model(models) as model, model.conversation(session=first) as chat:
        reply = chat.say("on", temperature=0, max_tokens=1)
        assert any(isinstance(event, SessionResumed) for event in reply.events)
    with library.lock():
        room = Room(library)
        library.cap_bytes = taken(library) - 1
        assert room.make(0, own="")
    assert kept(library) == {first}


def test_whose_rows_were_evicted_is_told_when_it_goes_on(models: Path, library: Library) -> None:
    with session_model(models) as model:
        session = talk(model, "1").session.id
    with library.lock():
        Room(library).evict(session)
    assert library.blobs.sizes() == {}
    with session_model(models) as model, model.conversation(session=session) as chat:
        reply = chat.say("on", **GREEDY)
        (told,) = [event for event in reply.events if isinstance(event, SessionRefused)]
        assert "evicted to stay within sessions_bytes" in told.reason
        assert len(library.read(session).messages) == 4


def test_no_rows_at_all(models: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    capped(monkeypatch, 0)
    with session_model(models) as model:
        chat = talk(model, "1")
        assert not (library.root / "rows").exists() and kept(library) == set()
        assert len(library.read(chat.session.id).messages) == 2
        session = chat.session.id
    with session_model(models) as model, model.conversation(session=session) as chat:
        (told,) = [event for event in chat.say("on", **GREEDY).events if isinstance(event, SessionRefused)]
        assert "sessions_bytes is 0" in told.reason


def test_more_than_is_allowed_is_told_once(models: Path, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    capped(monkeypatch, 50_000)
    with session_model(models) as model:
        chat = model.conversation(session="new")
        told = [
            [e for e in chat.say(TEXT, **GREEDY).events if isinstance(e, SessionNotSaved)] for _ in range(3)
        ]  # fmt: skip
        assert [len(events) for events in told] == [1, 0, 0]
        assert "sessions_bytes allows 48.8 KiB" in told[0][0].reason and told[0][0].has_text
        assert kept(library) == set() and len(library.read(chat.session.id).messages) == 6


def test_one_session_that_grows_under_a_tight_cap(
    models: Path, library: Library, one_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its rows are written again each turn; there is no room for the old and the new ones at once."""
    cap = one_bytes + MARGIN
    capped(monkeypatch, cap)
    with session_model(models, kv_policy="keydiff:96:token") as model:
        chat = model.conversation(session="new")
        for _ in range(3):
            reply = chat.say(TEXT, **GREEDY)
            assert not [event for event in reply.events if isinstance(event, SessionNotSaved)]
            assert kept(library) == {chat.session.id}
            assert taken(library) <= cap


def test_files_that_are_shared_stay_as_long_as_one_needs_them(models: Path, library: Library) -> None:
    with session_model(models) as model:
        first = talk(model, "1")
        copy = model.conversation(session=first.session.id)
        copy.say("on", **GREEDY)
        copy.close()
        first.close()
        delete_session(library, first.session.id)
        assert all(library.blobs.has(blob) for blob in library.index(copy.session.id).blobs)
        delete_session(library, copy.session.id)
    assert library.blobs.sizes() == {} and library.ids() == []


def test_an_open_session_is_not_deleted(models: Path, library: Library) -> None:
    with session_model(models) as model:
        chat = talk(model, "1")
        with pytest.raises(SessionError, match="open in another process"):
            delete_session(library, chat.session.id)
        chat.close()
        delete_session(library, chat.session.id)
        assert library.ids() == []


def test_what_killed_processes_left_goes_with_the_next_save(models: Path, library: Library) -> None:
    with session_model(models) as model:
        chat = talk(model, "1")
        rows, folder = library.root / "rows", library.root / chat.session.id
        (rows / f".{'0' * 64}.99999.0.part").write_bytes(b"half")
        (rows / ("f" * 64)).write_bytes(b"nobody's")
        (folder / ".conversation.json.999999999.0.part").write_bytes(b"half")
        begun = library.root / ("0" * 12)
        begun.mkdir()
        (begun / "lock").touch()
        (begun / ".conversation.json.999999999.0.part").write_bytes(b"half")
        damaged = library.root / ("1" * 12)
        damaged.mkdir()
        (damaged / "rows.index").write_bytes(b"damaged")
        chat.say("on", **GREEDY)
        assert sorted(path.name for path in folder.iterdir()) == ["conversation.json", "lock", "rows.index"]
        assert len(library.blobs.sizes()) == 2
        assert library.ids() == [chat.session.id]


def test_a_folder_that_a_process_is_about_to_fill_is_no_leftover(models: Path, library: Library) -> None:
    with session_model(models) as model:
        lock = library.open("0" * 12)
        talk(model, "1")
        assert "0" * 12 in library.ids()
        lock.release()


def test_conversations_are_private(models: Path, library: Library) -> None:
    with session_model(models) as model:
        talk(model, "1")
    assert library.root.stat().st_mode & 0o077 == 0
