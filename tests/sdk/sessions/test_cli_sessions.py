"""`wattwise sessions` and the chat that saves: as a person and as a script."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.chat_model import SPEC, byte_tokenizer
from support.session_models import session_model
from support.specs import random_weights
from wattwise.cli import main
from wattwise.paths import data_dir
from wattwise.sessions.library import Library
from wattwise_convert import gguf
from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_tui.plain import PlainChat

SHORT = ("--temperature", "0", "--max-tokens", "4", "--engine", "reference", "--kv", "f32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random chat model as a file."""
    folder = tmp_path_factory.mktemp("cli")
    tensors = {name: TensorSource.from_array(name, value) for name, value in random_weights(SPEC).items()}
    checkpoint = Checkpoint(spec=SPEC, tensors=tensors, tokenizer=byte_tokenizer(), origin=folder)
    gguf.export(checkpoint, folder / "tiny.gguf", quant="f32")
    return folder / "tiny.gguf"


@pytest.fixture
def chat(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the chat on these lines; what it said."""

    def talk(lines: str, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return run(capsys, "chat", *words, *SHORT)

    return talk


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def only(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (session,) = run_json(capsys, "sessions")["sessions"]
    return session


def test_a_chat_is_saved_and_goes_on(model: Path, chat: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = chat("Hello there\nAnd?\n", model, "--system", "Be brief.")
    session = only(capsys)
    assert code == 0 and f"[saved as session {session['id']}]" in out and out.count("saved as") == 1
    assert (session["messages"], session["title"], session["problem"]) == (5, "Hello there", None)
    assert session["tokens"] > 40 and session["rows_bytes"] > 10_000
    code, out, _ = chat("So?\n", model, "--resume")
    assert code == 0 and f"Going on with session {session['id']}, 5 messages: Hello there" in out
    assert f"came from saved session {session['id']}" in out
    assert only(capsys)["messages"] == 7
    code, out, _ = chat("So?\n", "--resume", session["id"][:4])
    assert code == 0 and only(capsys)["messages"] == 9, "the session knows its model"


def test_a_chat_that_is_not_to_be_saved(model: Path, chat: Any) -> None:
    code, out, _ = chat("Hello\n/new\nHello\n", model, "--no-session")
    assert code == 0 and "saved" not in out and not (data_dir() / "sessions").exists()


def test_json_lines_are_saved_too(model: Path, chat: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = chat("Hello\nAnd?\n", model, "--json")
    first, second = [json.loads(line) for line in out.splitlines()]
    session = only(capsys)["id"]
    assert code == 0 and first["events"] == [
        {"kind": "SessionSaved", "message": f"saved as session {session}", "session": session}
    ]
    assert second["events"] == []
    _, out, _ = chat("So?\n", model, "--json", "--resume", session)
    (event,) = json.loads(out)["events"]
    assert set(event) == {"kind", "message", "session", "tokens", "ms"} and event["kind"] == "SessionResumed"
    assert json.loads(out)["stats"]["cache_n"] == event["tokens"] > 20


def test_starting_over_leaves_sessions_behind(
    model: Path, chat: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "old.json"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "From a file."}]}))
    chat(f"Hello\n/new\nOther\n/system Be kind.\nThird\n/open {file}\n/quit\n", model)
    titles = {session["title"]: session["messages"] for session in run_json(capsys, "sessions")["sessions"]}
    assert titles == {"Hello": 2, "Other": 2, "Third": 3, "From a file.": 1}


def test_resuming_what_is_not_there(model: Path, chat: Any) -> None:
    code, _, err = chat("", model, "--resume")
    assert code == 1 and "no saved session of" in err
    code, _, err = chat("", model, "--resume", "abc")
    assert code == 1 and "no saved session 'abc'" in err
    code, _, err = chat("", model, "--resume", "--system", "Be kind.")
    assert code == 2 and "its own system prompt" in err
    with pytest.raises(SystemExit) as caught:
        chat("", model, "--resume", "--no-session")
    assert caught.value.code == 2


def test_list_show_export_and_delete(
    model: Path, chat: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_json(capsys, "sessions", "list") == {"sessions": [], "rows_bytes": 0, "sessions_bytes": 1 << 30}
    assert run(capsys, "sessions")[1] == "0 sessions, 0 B of rows of at most 1.00 GiB\n"
    chat("Hello there\n", model)
    chat("Tell me of ducks\n", model)
    listed = run_json(capsys, "sessions", "list")
    newest, oldest = listed["sessions"]
    assert (newest["title"], oldest["title"]) == ("Tell me of ducks", "Hello there")
    assert set(newest) == {
        "id", "title", "model", "created", "updated", "origin", "messages", "tokens", "rows_bytes", "problem",
    }  # fmt: skip
    assert listed["rows_bytes"] == newest["rows_bytes"] + oldest["rows_bytes"]
    assert run_json(capsys, "sessions") == listed
    lines = run(capsys, "sessions", "list")[1].splitlines()
    assert newest["id"] in lines[0] and "Tell me of ducks" in lines[0] and "tiny.gguf" in lines[0]
    assert lines[2].startswith("2 sessions, ")

    shown = run(capsys, "sessions", "show", oldest["id"][:6])[1]
    assert "# Hello there\n" in shown and "## User\n\nHello there\n" in shown and "## Assistant" in shown
    told = run_json(capsys, "sessions", "show", oldest["id"])
    assert told["messages"][0] == {"role": "user", "content": "Hello there"} and told["model"] == str(model)

    written = run_json(capsys, "sessions", "export", oldest["id"], tmp_path / "a.json")
    assert written == {"id": oldest["id"], "path": str(tmp_path / "a.json")}
    assert json.loads((tmp_path / "a.json").read_text())["messages"] == told["messages"]
    code, out, _ = run(capsys, "sessions", "export", oldest["id"], tmp_path / "a.md")
    assert (code, out) == (0, f"wrote 2 messages to {tmp_path / 'a.md'}\n")
    assert (tmp_path / "a.md").read_text() == shown
    code, _, err = run(capsys, "sessions", "export", oldest["id"], tmp_path / "a.md")
    assert code == 1 and "exists" in err
    code, _, err = run(capsys, "sessions", "export", oldest["id"], tmp_path / "a.pdf")
    assert code == 2 and ".json or .md" in err
    out = chat(f"/open {tmp_path / 'a.json'}\n", model, "--no-session")[1]
    assert "opened 2 messages" in out

    code, _, err = run(capsys, "sessions", "delete", oldest["id"], "nonesuch")
    assert code == 1 and len(run_json(capsys, "sessions")["sessions"]) == 2, "all or none"
    assert run(capsys, "sessions", "delete", oldest["id"][:8])[:2] == (0, f"deleted {oldest['id']}\n")
    assert run_json(capsys, "sessions", "delete", newest["id"], newest["id"][:9]) == {"deleted": [newest["id"]]}
    assert run_json(capsys, "sessions")["sessions"] == []
    code, out, _ = run(capsys, "sessions", "show", oldest["id"], "--json")
    assert code == 1 and json.loads(out)["error"]["type"] == "SessionError"


def test_resume_opens_the_chat(
    model: Path, chat: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat("Hello there\n", model)
    session = only(capsys)["id"]
    monkeypatch.setattr("sys.stdin", io.StringIO("And?\n"))
    code, out, _ = run(capsys, "sessions", "resume", session[:5], *SHORT)
    assert code == 0 and f"Going on with session {session}" in out
    monkeypatch.setattr("sys.stdin", io.StringIO("So?\n"))
    told = run_json(capsys, "sessions", "resume", session, *SHORT)
    assert told["stats"]["cache_n"] > 20 and only(capsys)["messages"] == 6


def test_a_session_whose_model_has_gone(
    model: Path, chat: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(model.read_bytes())
    chat("Hello there\n", moved)
    session = only(capsys)["id"]
    moved.unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO("So?\n"))
    code, _, err = run(capsys, "sessions", "resume", session, *SHORT)
    assert code == 1 and "moved.gguf" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("So?\n"))
    code, out, _ = run(capsys, "sessions", "resume", session, str(model), *SHORT)
    assert code == 0 and f"came from saved session {session}" in out, "the same bytes under another name"


def test_damaged_sessions_are_listed_as_such(model: Path, chat: Any, capsys: pytest.CaptureFixture[str]) -> None:
    chat("Hello there\n", model)
    session = only(capsys)["id"]
    (data_dir() / "sessions" / session / "conversation.json").write_text("{}")
    assert "format" in only(capsys)["problem"]
    assert f"{session}  cannot be read" in run(capsys, "sessions")[1]
    assert run(capsys, "sessions", "show", session)[0] == 1
    assert run(capsys, "sessions", "delete", session)[0] == 0


def test_a_chat_that_cannot_be_saved_says_so_and_goes_on(
    model: Path, chat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").write_text("no folder")
    monkeypatch.setenv("WATTWISE_HOME", str(tmp_path))
    code, out, _ = chat("Hello\nAnd?\n", model)
    assert code == 0 and out.count("was not saved: ") == 1 and out.count("  4 tok ") == 2


def test_help_names_the_actions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sessions", "--help"])
    out = capsys.readouterr().out
    assert all(action in out for action in ("list", "show", "resume", "export", "delete"))
    for action in ("list", "show", "resume", "export", "delete"):
        with pytest.raises(SystemExit) as caught:
            main(["sessions", action, "--help"])
        assert caught.value.code == 0 and "--json" in capsys.readouterr().out


def test_the_plain_chat_tells_of_copies_and_of_late_saves(models: Path, library: Library) -> None:
    with session_model(models) as loaded:
        first = loaded.conversation(session="new")
        first.say("Hello", temperature=0, max_tokens=4)
        out = io.StringIO()
        chat = PlainChat(loaded, session=first.session.id, source=io.StringIO("And?\n/undo\n"), screen=out)
        assert chat.run() == 0
    text = out.getvalue()
    assert text.count("goes on as a copy of it") == 1, "told at the beginning, not again with the reply"
    copy = next(name for name in library.ids() if name != first.session.id)
    assert library.read(copy).messages == library.read(first.session.id).messages, "taken back, and saved so on leaving"
    assert os.path.isdir(library.root)
