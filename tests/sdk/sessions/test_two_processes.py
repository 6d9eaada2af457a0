"""Two processes at one store, and at one session: the later one goes on with a copy, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.data import ROOT
from support.session_models import session_model
from wattwise.events import SessionForked, SessionNotSaved, SessionResumed
from wattwise.sessions.library import Library
from wattwise.sessions.lock import FileLock
from wattwise_devices.errors import SessionError

GREEDY = {"temperature": 0, "max_tokens": 6}
HELLO = "Hello there, this is a text of some length."

HOLDS = """
import sys, time
from pathlib import Path
from support.session_models import session_model
with session_model(Path(sys.argv[1])) as model:
    chat = model.conversation(session=sys.argv[2])
    print("open", flush=True)
    sys.stdin.readline()
    chat.say("From the first process.", temperature=0, max_tokens=6)
    print("said", flush=True)
    sys.stdin.readline()
"""
TALKS = """
import json, sys
from pathlib import Path
from support.session_models import session_model
problems = []
with session_model(Path(sys.argv[1])) as model:
    for number in range(6):
        with model.conversation("Be kind.", session="new") as chat:
            for turn in range(3):
                reply = chat.say(f"{sys.argv[2]} {number} {turn}", temperature=0, max_tokens=4)
                problems += [e.message for e in reply.events if hasattr(e, "reason")]
print(json.dumps(problems))
"""


def start(code: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )  # fmt: skip


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    return line or process.communicate()[1]


def answer(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def session(models: Path, library: Library) -> str:
    with session_model(models) as model:
        chat = model.conversation(session="new")
        chat.say(HELLO, **GREEDY)
        return chat.session.id


def test_the_later_one_goes_on_with_a_copy(models: Path, library: Library, session: str) -> None:
    first = start(HOLDS, models, session)
    try:
        assert read_line(first) == "open"
        with session_model(models) as model, model.conversation(session=session) as chat:
            assert chat.session.id != session and chat.session.origin == session
            reply = chat.say("From the second process.", **GREEDY)
            kinds = [type(event) for event in reply.events]
            assert kinds[0] is SessionForked and SessionResumed in kinds
            assert session in reply.events[0].message and chat.session.id in reply.events[0].message
            assert reply.stats.cache_n > len(HELLO), "its rows are read from the other's files"
            copy = chat.session.id
            answer(first)
            assert read_line(first) == "said"
            chat.say("And on.", **GREEDY)
        answer(first)
        assert first.wait(30) == 0
    finally:
        first.kill()
        first.communicate()
    ours, theirs = library.read(copy).messages, library.read(session).messages
    assert [m["content"] for m in ours[:2]] == [m["content"] for m in theirs[:2]]
    assert (len(ours), len(theirs)) == (6, 4)
    assert ours[2]["content"] == "From the second process." and theirs[2]["content"] == "From the first process."
    for name in (session, copy):
        index = library.index(name)
        assert index is not None and all(library.blobs.has(blob) for blob in index.blobs)


def test_a_killed_process_has_nothing_open(models: Path, library: Library, session: str) -> None:
    first = start(HOLDS, models, session)
    assert read_line(first) == "open"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    with session_model(models) as model, model.conversation(session=session) as chat:
        assert chat.session.id == session and chat.take_notes() == []


def test_a_closed_session_can_be_opened_again_and_not_twice(models: Path, library: Library, session: str) -> None:
    with session_model(models) as model:
        one = model.conversation(session=session)
        two = model.conversation(session=session)
        assert (one.session.id, two.session.origin) == (session, session)
        one.close()
        one.close()
        three = model.conversation(session=session)
        assert three.session.id == session
        late = one.say("Too late?", **GREEDY)
        assert any(isinstance(event, SessionForked) for event in late.events) and one.session.origin == session
        three.say("Mine.", **GREEDY)
        assert library.read(session).messages[2]["content"] == "Mine.", "whoever has it open writes it"
        assert library.read(one.session.id).messages[2]["content"] == "Too late?"


def test_turns_that_another_has_added_meanwhile_are_not_written_over(
    models: Path, library: Library, session: str
) -> None:
    with session_model(models) as model:
        one = model.conversation(session=session)
        one.close()
        with model.conversation(session=session) as two:
            two.say("Meanwhile.", **GREEDY)
        one.say("Mine.", **GREEDY)
        assert one.session.id != session
        assert [library.read(name).messages[2]["content"] for name in (session, one.session.id)] == [
            "Meanwhile.", "Mine.",
        ]  # fmt: skip


def test_a_conversation_goes_on_after_it_was_closed(models: Path, library: Library, session: str) -> None:
    with session_model(models) as model:
        chat = model.conversation(session=session)
        chat.close()
        assert not [e for e in chat.say("On.", **GREEDY).events if isinstance(e, SessionNotSaved)]
        other = model.conversation(session=session)
        assert other.session.origin == session, "it is open again"
    assert len(library.read(session).messages) == 4


def test_an_unused_copy_leaves_nothing(models: Path, library: Library, session: str) -> None:
    with session_model(models) as model:
        model.conversation(session=session)
        model.conversation(session=session).close()
        model.conversation(session="new").close()
    assert library.ids() == [session]


@pytest.mark.slow
def test_three_processes_save_at_once(models: Path, library: Library) -> None:
    session_model(models).close()
    running = [start(TALKS, models, number) for number in range(3)]
    for process in running:
        out, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert json.loads(out) == []
    listed = library.overview()
    assert len(listed) == 18
    needed: set[str] = set()
    for item in listed:
        assert item.record is not None and len(item.record.messages) == 7
        index = library.index(item.id)
        assert index is not None
        needed |= {blob.name for blob in index.blobs}
        for segment in index.segments:
            library.blobs.get(segment.blob)
    assert set(library.blobs.sizes()) == needed


def test_a_lock_is_waited_for_and_then_told(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held: Any = FileLock.try_take(path)
    assert held is not None and FileLock.try_take(path) is None
    began = time.monotonic()
    with pytest.raises(SessionError, match="held"):
        FileLock.take(path, wait_s=0.05)
    assert time.monotonic() - began >= 0.05
    held.release()
    held.release()
    with FileLock.take(path, wait_s=0):
        assert FileLock.try_take(path) is None
    del held
    assert FileLock.try_take(path) is not None


def test_a_lock_whose_file_was_deleted_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = FileLock.try_take(path)
    path.unlink()
    second = FileLock.try_take(path)
    assert first is not None and second is not None
    assert FileLock.try_take(path) is None
