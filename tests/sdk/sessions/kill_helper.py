"""Run by test_kill: forks a process that talks and saves, and kills it at a random moment, again and again.

Usage: kill_helper.py FOLDER TRIALS SEED. Prints what was found as JSON. Before each save the process notes what it is
about to save; whatever comes back from disk must be one of these, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from support.session_models import session_model
from wattwise.model import Model
from wattwise.paths import data_dir
from wattwise.prefix import NO_TOKENS
from wattwise.sessions.library import Library
from wattwise.sessions.open_session import OpenSession
from wattwise.sessions.room import delete_session

TURNS = ("The quick brown fox jumps over the lazy dog. Twice.", "And then?", "x" * 60, "So what was it?")
OPTIONS = {"temperature": 1.0, "max_tokens": 5}
POLICIES = (None, "keydiff:96:token", "h2o:96:head")
CAP_BYTES = 700 << 10  # a handful of sessions: rows are evicted all the time


def text_of(messages: Any) -> str:
    return hashlib.sha256(json.dumps(list(messages), sort_keys=True).encode()).hexdigest()


def rows_of(model: Model) -> str:
    """All rows that are held, and what is known of them."""
    state = model.held.snapshot()
    parts = [model.engine.kv.export(), state.ids.tobytes(), str(state.evicted).encode()]
    parts += [state.tokens.tobytes()] if state.tokens is not None else []
    parts += [part.tobytes() for part in state.attention.parts] if state.attention is not None else []
    return hashlib.sha256(b"".join(parts)).hexdigest()


def talk_forever(model: Model, notes: Path, seed: int) -> None:
    """New conversations one after another, some gone on with in two places, some deleted again."""
    library = Library(data_dir() / "sessions", CAP_BYTES)
    draw = random.Random(seed)
    save = OpenSession.save

    def noted(self: OpenSession, messages: Any, *rest: Any, **options: Any) -> None:
        line = json.dumps([self.id, text_of(messages), rows_of(model)]) + "\n"
        with notes.open("a") as file:
            file.write(line)
        save(self, messages, *rest, **options)

    OpenSession.save = noted  # type: ignore[method-assign]
    while True:
        listed = [item.id for item in library.overview()]
        before = draw.choice(listed) if listed and draw.random() < 0.4 else "new"
        with model.conversation(session=before) as chat:
            for text in TURNS[: draw.randint(1, len(TURNS))]:
                if model.engine.kv.next_position > 300:
                    break
                chat.say(text, seed=draw.randrange(1000), **OPTIONS)
        for item in library.overview():
            if draw.random() < 0.1:
                delete_session(library, item.id)


def check(library: Library, model: Model, notes: Path) -> dict[str, int]:
    """Every session on disk against what was noted."""
    said = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    found = {"sessions": 0, "with_rows": 0, "wrong": 0}
    for item in library.overview():
        found["sessions"] += 1
        texts = {text for name, text, _ in said if name == item.id}
        if item.record is None or text_of(item.record.messages) not in texts:
            found["wrong"] += 1
            continue
        index = library.index(item.id)
        if index is None:
            continue
        model.forget()
        with model.conversation(session=item.id) as chat:
            chat._session.recall([*index.state.ids.tolist(), 0], NO_TOKENS, lambda event: None)
        is_right = rows_of(model) in {rows for name, _, rows in said if name == item.id}
        found["with_rows" if is_right else "wrong"] += 1
    return found


def main(folder: Path, trials: int, seed: int) -> dict[str, Any]:
    """Sums over all trials; "caught": kills that came in the middle of a write."""
    os.environ["WATTWISE_SESSIONS_BYTES"] = str(CAP_BYTES)
    draw = random.Random(seed)
    total = {"sessions": 0, "with_rows": 0, "wrong": 0, "caught": 0, "litter": 0}
    for number, policy in enumerate(POLICIES):
        os.environ["WATTWISE_HOME"] = str(folder / f"home-{number}")
        notes = folder / f"notes-{number}"
        with session_model(folder, kv_policy=policy) as model:
            library = Library(data_dir() / "sessions", CAP_BYTES)
            for trial in range(trials // len(POLICIES) + 1):
                child = os.fork()
                if child == 0:
                    talk_forever(model, notes, trial)
                    os._exit(1)
                time.sleep(draw.uniform(0.05, 0.8))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                total["caught"] += any(path.name.endswith(".part") for path in library.root.rglob("*"))
                for name, count in check(library, model, notes).items():
                    total[name] += count
            for item in library.overview():
                delete_session(library, item.id)
            total["litter"] += sum(1 for path in library.root.rglob("*") if path.is_file() and path.name != "lock")
    return total


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
