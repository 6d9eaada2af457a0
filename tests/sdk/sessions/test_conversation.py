"""Saved conversations as an app meets them: what is kept, what is told, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.session_models import session_model
from wattwise.events import SessionResumed, SessionSaved
from wattwise.model import Model
from wattwise.sessions.library import Library
from wattwise.sessions.record import title_of
from wattwise.store import model_reference
from wattwise_devices.errors import ContextOverflow, PlanError, SessionError

GREEDY = {"temperature": 0, "max_tokens": 6}


def kinds(reply: Any) -> list[str]:
    return [type(event).__name__ for event in reply.events]


def test_nothing_is_saved_unless_asked(models: Path, library: Library) -> None:
    with session_model(models) as model:
        chat = model.conversation()
        assert kinds(chat.say("Hello", **GREEDY)) == []
        assert chat.session is None and chat.take_notes() == []
        chat.close()
    assert not library.root.exists()


def test_every_turn_is_saved_and_it_is_told_once(models: Path, library: Library) -> None:
    with session_model(models) as model:
        chat = model.conversation("Be brief.", session="new")
        assert library.ids() == [], "a conversation without a turn is nothing to keep"
        told = [kinds(chat.say(text, **GREEDY)) for text in ("Hello", "And?", "So?")]
        assert told == [["SessionSaved"], [], []]
        record = library.read(chat.session.id)
        assert record.messages == chat.messages and record == chat.session
        assert (record.title, record.model, record.origin) == ("Hello", model.reference, None)
        assert record.created <= record.updated and record.created.endswith("+00:00")


def test_going_on_in_the_same_process(models: Path, library: Library) -> None:
    with session_model(models) as model:
        with model.conversation("Be brief.", session="new") as chat:
            chat.say("Hello", **GREEDY)
        session = chat.session.id
        with model.conversation(session=session[:5]) as again:
            assert again.messages == chat.messages
            reply = again.say("And?", **GREEDY)
            assert kinds(reply) == [], "everything is still held: nothing to read, nothing to tell"
            assert reply.stats.cache_n > 20
        assert len(library.read(session).messages) == 5
        assert model.conversation(session="latest").session.id == session


def test_the_latest_is_of_this_model(models: Path, tmp_path: Path, library: Library) -> None:
    with session_model(models) as model, pytest.raises(SessionError, match="no saved session of"):
        model.conversation(session="latest")
    with session_model(tmp_path) as other:
        other.conversation(session="new").say("Elsewhere", **GREEDY)
    with session_model(models) as model:
        with model.conversation(session="new") as chat:
            chat.say("Here", **GREEDY)
        with session_model(tmp_path, seed=1) as third:
            third.conversation(session="new").say("Later", **GREEDY)
        assert model.conversation(session="latest").session.id == chat.session.id


def test_what_a_session_keeps(models: Path, library: Library) -> None:
    with session_model(models, kv_policy="keydiff:96:token") as model:
        chat = model.conversation(session="new")
        chat.pinned = {0}
        chat.say("My name is Ann.", **GREEDY)
        chat.say("x" * 90, **GREEDY)
        session = chat.session.id
        chat.close()
        again = model.conversation(session=session)
        assert again.pinned == {0}
        again.say("On.", **GREEDY)
        again.undo()
        again.undo()
        again.undo()
        assert again.pinned == set() and again.messages == []
        again.close()
    assert library.read(session).messages == [] and library.read(session).title == "My name is Ann."


def test_tools_come_back(library: Library, models: Path) -> None:
    from support.chat_model import CHATML, byte_tokenizer
    from wattwise.model import Model

    tools = [{"type": "function", "function": {"name": "set_timer", "parameters": {"type": "object"}}}]
    template = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHATML
    with session_model(models) as loaded:
        model = Model(loaded.plan, loaded.engine, byte_tokenizer(template), 1.0)
        with model.conversation("Be brief.", tools, session="new") as chat:
            chat.say("Set a timer.", **GREEDY)
            chat.say_result('{"status": "ok"}', **GREEDY)
        again = model.conversation(session=chat.session.id)
        assert again._tools == tools, "in the same order: a template writes them as they come"
        assert [message["role"] for message in again.messages[1:]] == ["user", "assistant", "tool", "assistant"]
        assert again.say("Thanks.", **GREEDY).stats.cache_n > 50
        again.close()


def test_pins_are_those_of_the_conversation_and_of_the_request(models: Path) -> None:
    from wattwise.events import Evicted

    with session_model(models, kv_policy="keydiff:128:token") as model:
        chat = model.conversation(session="new")
        chat.say("My name is Ann.", **GREEDY)
        chat.say("Second.", **GREEDY)
        chat.pinned = {0}
        reply = chat.say("x" * 150, pinned=[2], **GREEDY)
        lost = {index for event in reply.events if isinstance(event, Evicted) for index, _ in event.messages}
        assert lost and not lost & {0, 2}


@pytest.mark.parametrize("what", [{"system": "Be long."}, {"tools": []}])
def test_a_saved_session_has_its_own_beginning(what: dict[str, Any], models: Path) -> None:
    with session_model(models) as model:
        chat = model.conversation(session="new")
        chat.say("Hello", **GREEDY)
        with pytest.raises(TypeError, match="its own system prompt"):
            model.conversation(session=chat.session.id, **what)


def test_ids_that_name_nothing_or_too_much(models: Path, library: Library) -> None:
    with session_model(models) as model:
        for session in ("abc", "", "nonesuch", "../x"):
            with pytest.raises(SessionError, match="no saved session"):
                model.conversation(session=session)
        for name in ("abc000000001", "abc000000002"):
            (library.root / name).mkdir(parents=True)
        with pytest.raises(SessionError, match="2 sessions"):
            model.conversation(session="abc")
        assert library.find("ABC000000001") == "abc000000001"


def test_a_turn_that_comes_to_nothing_saves_nothing(models: Path, library: Library) -> None:
    with session_model(models) as model:
        chat = model.conversation(session="new")
        with pytest.raises(ContextOverflow):
            chat.say("x" * 600)
        stream = chat.stream("Hello", **GREEDY)
        stream.cancel()
        assert stream.run().finish_reason == "cancelled"
        assert library.ids() == [] and chat.messages == []
        chat.say("Hello", **GREEDY)
        with chat.stream("And?", temperature=1, max_tokens=40, seed=1) as stream:
            next(stream)
        assert library.read(chat.session.id).messages == chat.messages and len(chat.messages) == 4


def test_what_is_changed_between_turns_is_saved_at_the_end(models: Path, library: Library) -> None:
    with session_model(models) as model:
        chat = model.conversation(session="new")
        chat.say("One.", **GREEDY)
        chat.say("Two.", **GREEDY)
        chat.undo()
        assert len(library.read(chat.session.id).messages) == 4
    assert len(library.read(chat.session.id).messages) == 2, "closing the model closes it"


def test_messages_can_be_edited_without_changing_what_is_on_disk(models: Path, library: Library) -> None:
    with session_model(models) as model:
        chat = model.conversation(session="new")
        chat.say("One.", **GREEDY)
        chat.messages[0]["content"] = "Other."
        assert library.read(chat.session.id).messages[0]["content"] == "One."
        chat.close()
        assert library.read(chat.session.id).messages[0]["content"] == "Other."


def test_two_conversations_take_turns(models: Path, library: Library) -> None:
    with session_model(models) as model, session_model(models) as alone:
        one, two = model.conversation("A.", session="new"), model.conversation("B.", session="new")
        plain = alone.conversation("A.")
        for turn in range(3):
            reply = one.say(f"{turn} is a number that comes before the next.", **GREEDY)
            two.say(f"{turn}?", **GREEDY)
            assert reply.ids == plain.say(f"{turn} is a number that comes before the next.", **GREEDY).ids
        assert any(isinstance(event, SessionResumed) for event in reply.events)
        assert one.session.id != two.session.id
        assert library.index(one.session.id).state.ids.tolist() != library.index(two.session.id).state.ids.tolist()


def test_regenerating_is_saved(models: Path, library: Library) -> None:
    with session_model(models) as model:
        chat = model.conversation(session="new")
        chat.say("One.", temperature=1, seed=1, max_tokens=8)
        chat.regenerate(temperature=1, seed=2, max_tokens=8).run()
        assert library.read(chat.session.id).messages == chat.messages


def test_the_reply_tells_events_as_they_happen(models: Path) -> None:
    seen: list[Any] = []
    with session_model(models) as model:
        reply = model.conversation(session="new").say("One.", on_event=seen.append, **GREEDY)
    assert seen == reply.events and isinstance(seen[0], SessionSaved)
    assert seen[0].session in seen[0].message


def test_a_call_back_at_the_end_may_use_the_model(models: Path) -> None:
    with session_model(models) as model:
        others = []
        with model.stream("One.", on_end=lambda reply: others.append(model.chat("Two.", **GREEDY)), **GREEDY) as stream:
            list(stream)
        assert len(others) == 1


@pytest.mark.parametrize(
    ("messages", "title"),
    [
        ([], ""), ([{"role": "system", "content": "Be kind."}], ""),
        ([{"role": "user", "content": "  Two\n\nlines\there "}], "Two lines here"),
        ([{"role": "user", "content": ["parts"]}, {"role": "user", "content": "text"}], "text"),
        ([{"role": "user", "content": "word " * 30}], "word " * 11 + "word…"),
    ],
)  # fmt: skip
def test_titles(messages: list[dict[str, Any]], title: str) -> None:
    assert title_of(messages) == title
    assert len(title_of(messages)) <= 60


def test_models_are_called_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_reference("builtin") == "builtin"
    assert model_reference("m.gguf") == model_reference(tmp_path / "m.gguf") == str(tmp_path.resolve() / "m.gguf")


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("64MB", 64_000_000), ("1GiB", 1 << 30), (0, 0)])
def test_the_cap_is_a_setting(text: Any, value: int, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wattwise.settings import resolve

    assert resolve({"sessions_bytes": text})["sessions_bytes"] == value
    assert resolve()["sessions_bytes"] == 1 << 30
    with pytest.raises(PlanError, match="sessions_bytes"):
        resolve({"sessions_bytes": "-1"})
    monkeypatch.setenv("WATTWISE_SESSIONS_BYTES", "5MB")
    assert Library.here().cap_bytes == 5_000_000


def test_a_model_is_hashed_once(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wattwise.sessions import content

    hashed: list[Path] = []
    whole = content._hash
    monkeypatch.setattr(content, "_hash", lambda path: (hashed.append(path), whole(path))[1])
    for _ in range(3):
        with session_model(models) as model:
            model.conversation(session="new").say("Hello", **GREEDY)
    assert len(hashed) == 1


def test_a_changed_model_is_hashed_again(tmp_path: Path) -> None:
    import os

    from wattwise.sessions.content import content_hash

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"1")
    first = content_hash(tmp_path / "a")
    assert content_hash(tmp_path / "a") == first
    (tmp_path / "a" / "x").write_bytes(b"2")
    os.utime(tmp_path / "a" / "x", ns=(1, 1))
    second = content_hash(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert len({first, second, content_hash(tmp_path / "a")}) == 3, "names count as well"
    (Path(os.environ["WATTWISE_HOME"]) / "cache" / "hashes.json").write_text("[")
    assert content_hash(tmp_path / "a" / "y") == content_hash(tmp_path / "a" / "y")


def test_a_closed_model_has_closed_its_conversations(models: Path) -> None:
    model: Model = session_model(models)
    chat = model.conversation(session="new")
    chat.say("Hello", **GREEDY)
    model.close()
    with session_model(models) as other, other.conversation(session=chat.session.id) as again:
        assert again.session.origin is None
