"""A turn that cannot be saved is an event with the system's reason; the reply and the conversation are as they are."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.data import ROOT
from support.session_models import session_model
from wattwise.conversation import Conversation
from wattwise.events import SessionNotSaved, SessionRefused, SessionSaved, in_words
from wattwise.paths import data_dir
from wattwise.reply import Reply
from wattwise.sessions.blobs import Blobs
from wattwise.sessions.library import Library
from wattwise.sessions.rows import ModelRows

GREEDY = {"temperature": 0, "max_tokens": 6}
HELLO = "Hello there, this is a text of some length. " * 3


def troubles(reply: Reply) -> list[SessionNotSaved]:
    return [event for event in reply.events if isinstance(event, SessionNotSaved)]


def was_saved(reply: Reply) -> bool:
    return any(isinstance(event, SessionSaved) for event in reply.events)


def mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 96 KiB as the home: a text fits, rows do not."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or not mount("-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)):
        pytest.skip("a small file system cannot be mounted here")
    monkeypatch.setenv("WATTWISE_HOME", str(place / "home"))
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(models: Path, small_disk: Path) -> None:
    with session_model(models) as model:
        plain = model.chat(HELLO, **GREEDY)
        model.forget()
        chat = model.conversation(session="new")
        reply = chat.say(HELLO, **GREEDY)
        assert (reply.ids, reply.finish_reason) == (plain.ids, plain.finish_reason)
        (told,) = troubles(reply)
        assert os.strerror(errno.ENOSPC) in told.reason and told.has_text and "but not its rows" in told.message
        assert told.message in in_words(reply.events)
        again = chat.say(HELLO, **GREEDY)
        assert not troubles(again) and not was_saved(again), "the same reason is told once"
        library = Library(data_dir() / "sessions", 1 << 30)
        assert len(library.read(chat.session.id).messages) == 4, "the text is there"
        assert library.blobs.sizes() == {}, "nothing is left of what did not fit"
        assert mount("-o", "remount,size=4m", str(small_disk))
        assert was_saved(chat.say("And?", **GREEDY)), "it is told that it works again"
        assert library.index(chat.session.id).state.rows == model.engine.kv.length


def test_a_disk_without_room_for_the_text(models: Path, small_disk: Path) -> None:
    with session_model(models) as model:
        chat = model.conversation(session="new")
        (told,) = troubles(chat.say(HELLO, temperature=0, max_tokens=2))
        assert told.has_text
        (small_disk / "filler").write_bytes(b"x" * (free_bytes(small_disk)))
        (told,) = troubles(chat.say(HELLO * 2, temperature=0, max_tokens=2))
        assert not told.has_text and os.strerror(errno.ENOSPC) in told.reason
        assert len(chat.messages) == 4
    (small_disk / "filler").unlink()
    library = Library(data_dir() / "sessions", 1 << 30)
    assert len(library.read(library.ids()[0]).messages) == 2, "the text of the turn before is whole"


def free_bytes(place: Path) -> int:
    info = os.statvfs(place)
    return info.f_bavail * info.f_frsize


LIMITED = """
import json, resource, sys
from pathlib import Path
from support.session_models import session_model
with session_model(Path(sys.argv[1])) as model:
    chat = model.conversation(session="new")
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    reply = chat.say(sys.argv[2], temperature=0, max_tokens=6)
    again = chat.say("And?", temperature=0, max_tokens=6)
    print(json.dumps([[event.to_json() for event in r.events] for r in (reply, again)]))
"""


def test_a_limit_on_the_size_of_files(models: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    session_model(models).close()  # the model's file is made without the limit
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(models), HELLO], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert [event["kind"] for event in first] == ["SessionNotSaved"] and second == []
    assert os.strerror(errno.EFBIG) in first[0]["reason"]
    library = Library(data_dir() / "sessions", 1 << 30)
    assert library.blobs.sizes() == {} and len(library.read(library.ids()[0]).messages) == 4


def test_a_home_that_cannot_be(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").write_text("no folder")
    monkeypatch.setenv("WATTWISE_HOME", str(tmp_path))
    with session_model(models) as model:
        chat = model.conversation(session="new")
        (told,) = troubles(chat.say(HELLO, **GREEDY))
        assert os.strerror(errno.ENOTDIR) in told.reason and not told.has_text
        assert chat.say("And?", **GREEDY).stats.cache_n > 0
        chat.undo()
        chat.close()
        assert chat.take_notes() == [], "the same reason, told before"


@pytest.fixture
def frozen(models: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A home with one session on a file system that has become read-only, and the session's id."""
    home = Path(os.environ["WATTWISE_HOME"])
    with session_model(models) as model:
        chat = model.conversation(session="new")
        chat.say(HELLO, **GREEDY)
        session = chat.session.id
    if not (mount("--bind", str(home), str(home)) and mount("-o", "remount,ro,bind", str(home))):
        subprocess.run(["umount", str(home)], capture_output=True, check=False)
        pytest.skip("a read-only file system cannot be mounted here")
    try:
        yield home, session
    finally:
        subprocess.run(["umount", str(home)], check=True)


def test_a_read_only_home_is_resumed_from_and_told(models: Path, frozen: tuple[Path, str]) -> None:
    home, session = frozen
    with session_model(models) as model:
        chat = model.conversation(session=session)
        (note,) = chat.take_notes()
        assert isinstance(note, SessionNotSaved) and os.strerror(errno.EROFS) in note.reason
        reply = chat.say("And?", **GREEDY)
        assert reply.stats.cache_n > 100, "reading works"
        assert troubles(reply) == []
        fresh = model.conversation(session="new")
        assert os.strerror(errno.EROFS) in troubles(fresh.say("And?", **GREEDY))[0].reason
        assert subprocess.run(["mount", "-o", "remount,rw,bind", str(home)], check=True).returncode == 0
        assert was_saved(chat.say("So?", **GREEDY))
    assert len(Library(data_dir() / "sessions", 1 << 30).read(session).messages) == 6


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_every_call_to_the_system_may_fail(
    code: int, call: str, models: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session_model(models) as model:
        chat = model.conversation(session="new")
        chat.say(HELLO, **GREEDY)
        before = (library.read(chat.session.id), library.index(chat.session.id))

        def fail(*_: Any, **__: Any) -> Any:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patched:
            patched.setattr(os, call, fail)
            reply = chat.say("And?", **GREEDY)
        (told,) = troubles(reply)
        assert os.strerror(code) in told.reason
        assert reply.finish_reason in ("stop", "length") and len(chat.messages) == 4
        after = (library.read(chat.session.id), library.index(chat.session.id))
        if call == "replace" or not told.has_text:
            assert after == before, "what was there is still there"
        assert was_saved(chat.say("So?", **GREEDY))
        assert library.index(chat.session.id).state.rows == model.engine.kv.length


def test_no_memory_to_save_with(models: Path, library: Library) -> None:
    with session_model(models, budget_source="a test") as model:
        object.__setattr__(model.plan, "budget_bytes", 1 << 20)
        chat = model.conversation(session="new")
        (told,) = troubles(chat.say(HELLO, **GREEDY))
        assert told.has_text and "budget allows 1.00 MiB" in told.reason
        assert troubles(chat.say("And more?", **GREEDY)) == [], "other figures, the same reason"
        session = chat.session.id
        object.__setattr__(model.plan, "budget_bytes", None)
        chat.say("So?", **GREEDY)
        chat.close()
        model.forget()
        object.__setattr__(model.plan, "budget_bytes", 1 << 20)
        with model.conversation(session=session) as again:
            reply = again.say("So?", **GREEDY)
            refused = [event for event in reply.events if isinstance(event, SessionRefused)]
            assert "budget allows" in refused[0].reason and reply.stats.cache_n == 0
        assert library.index(session) is not None, "the rows are as sound as before"


def test_a_model_file_that_has_gone(models: Path, tmp_path: Path) -> None:
    with session_model(tmp_path) as model:
        chat = model.conversation(session="new")
        model.plan.artifact.path.unlink()
        (told,) = troubles(chat.say(HELLO, **GREEDY))
        assert told.has_text and os.strerror(errno.ENOENT) in told.reason and "tiny" in told.reason


@pytest.mark.parametrize("error", [RuntimeError("a bug"), MemoryError(), RecursionError("deep"), KeyError("x")])
def test_whatever_goes_wrong_while_saving(error: Exception, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    with session_model(models) as model:
        chat = model.conversation(session="new")
        with monkeypatch.context() as patched:
            patched.setattr(ModelRows, "save", fail)
            (told,) = troubles(chat.say(HELLO, **GREEDY))
        assert told.reason
        assert was_saved(chat.say("And?", **GREEDY))


def test_ctrl_c_while_saving_goes_on_as_such_and_breaks_nothing(
    models: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Blobs, data: bytes) -> Any:
        raise KeyboardInterrupt

    with session_model(models) as model:
        chat = model.conversation(session="new")
        with monkeypatch.context() as patched:
            patched.setattr(Blobs, "put", interrupted)
            with pytest.raises(KeyboardInterrupt):
                chat.say(HELLO, **GREEDY)
        assert len(chat.messages) == 2, "the reply is kept"
        reply = chat.say("And?", **GREEDY)
        assert was_saved(reply) and reply.stats.cache_n > 100
        assert library.index(chat.session.id).state.rows == model.engine.kv.length


def test_a_conversation_that_is_saved_late_is_saved_on_closing(
    models: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with session_model(models) as model:
        chat: Conversation = model.conversation(session="new")
        with monkeypatch.context() as patched:
            patched.setattr(Library, "write", fail)
            assert troubles(chat.say(HELLO, **GREEDY))
        chat.close()
        assert [type(note) for note in chat.take_notes()] == [SessionSaved]
    assert len(library.read(chat.session.id).messages) == 2
