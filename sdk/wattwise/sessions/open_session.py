"""One saved conversation while it goes on: its lock, what is on disk of it, and what there is to tell.

Whoever opens a session that another process has open gets a copy of its own, with a note. A turn that cannot be saved
is a note as well: saving never stops a conversation.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wattwise.events import Event, SessionForked, SessionNotSaved, SessionSaved
from wattwise.sessions.library import Library
from wattwise.sessions.lock import FileLock
from wattwise.sessions.record import SessionRecord, now, title_of
from wattwise.sessions.rows import ModelRows
from wattwise_devices.errors import CorruptArtifact, Error, LoadError

Note = Callable[[Event], None]
_NUMBERS = re.compile(r"[0-9.]+ ?[KMG]?i?B?|[0-9a-f]{12,}")  # sizes, counts and names of files


class OpenSession:
    """record: as last read or written. has_rows: the session whose saved rows begin this text; of a copy, before it has
    its own, the one that it was copied from. `new_session` and `open_session` make one."""

    def __init__(
        self, library: Library, rows: ModelRows, record: SessionRecord, lock: FileLock | None, *, has_rows: str | None
    ) -> None:
        self._library, self._rows, self._lock = library, rows, lock
        self._has_rows = has_rows
        self._is_expected = has_rows is not None
        self._trouble: str | None = None
        self._is_told = record.id == has_rows  # that it is saved: who goes on with a session knows
        self._notes: list[Event] = []
        self.record = record

    @property
    def id(self) -> str:
        """Of the session; one that has just begun is on disk after its first turn."""
        return self.record.id

    def note(self, event: Event) -> None:
        """Keep what no reply has told yet."""
        self._notes.append(event)

    def take_notes(self) -> list[Event]:
        """What no reply has told yet, once."""
        notes, self._notes = self._notes, []
        return notes

    def recall(self, prompt: Sequence[int], protected: np.ndarray, note: Note) -> None:
        """Before a prompt is read, while the model is ours: bring in saved rows that begin it."""
        for event in self.take_notes():
            note(event)
        is_expected, self._is_expected = self._is_expected, False
        for event in self._rows.recall(prompt, protected, self._has_rows, is_expected=is_expected):
            note(event)

    def save(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None,
        pinned: Sequence[int],
        note: Note,
        *,
        with_rows: bool = True,
    ) -> None:
        """Write the conversation; with_rows: also the rows held now, which must be its. Never raises but for Ctrl-C."""
        has_text = False
        try:
            self._own(note)
            self._save_text(messages, tools, pinned)
            has_text = True
            if with_rows:
                self._rows.save(self.id)
                self._has_rows = self.id
        except Exception as error:  # whatever it is: the reply that has just been made counts more
            self._tell_trouble(error, note, has_text=has_text)
            return
        if not self._is_told or self._trouble is not None:
            note(SessionSaved(f"saved as session {self.id}", session=self.id))
        self._is_told, self._trouble = True, None

    def close(self) -> None:
        """Let others write the session. Idempotent."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _own(self, note: Note) -> None:
        """Have the right to write the session; become a copy of it where another has it, or has gone on with it."""
        if self._lock is not None:
            return
        lock = self._library.open(self.id)
        if lock is None or self._has_changed():
            if lock is not None:
                lock.release()
            self.record, forked = _copy(self._library, self.record)
            self._is_told = False
            note(forked)
            lock = self._library.open(self.id)
        self._lock = lock

    def _has_changed(self) -> bool:
        """Whether the text on disk is another than we have read or written; not so where there is none."""
        try:
            return self._library.read(self.id).updated != self.record.updated
        except CorruptArtifact:
            return True
        except LoadError:
            return False

    def _save_text(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, pinned: Sequence[int]
    ) -> None:
        record = dataclasses.replace(
            self.record, messages=copy.deepcopy(list(messages)), tools=list(tools) if tools is not None else None,
            pinned=tuple(sorted(pinned)), title=self.record.title or title_of(messages), updated=now(),
        )  # fmt: skip
        self._library.write(record)
        self.record = record

    def _tell_trouble(self, error: Exception, note: Note, *, has_text: bool) -> None:
        reason = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        elif not isinstance(error, (Error, OSError, MemoryError)):
            reason = f"{type(error).__name__}: {reason}"
        kind = f"{has_text} {_NUMBERS.sub('', reason)}"  # a conversation that grows has another size every turn
        if kind != self._trouble:
            self._trouble = kind
            what = "the text of this turn was saved, but not its rows" if has_text else "this turn was not saved"
            note(SessionNotSaved(f"{what}: {reason}", session=self.id, reason=reason, has_text=has_text))


def new_session(library: Library, rows: ModelRows, model: str) -> OpenSession:
    """One that begins now; nothing is on disk before its first turn."""
    moment = now()
    record = SessionRecord(id=library.new_id(), model=model, created=moment, updated=moment)
    return OpenSession(library, rows, record, None, has_rows=None)


def open_session(library: Library, rows: ModelRows, session: str) -> OpenSession:
    """A saved one, to go on with; a copy of it where another process has it open.

    Raises CorruptArtifact or LoadError for a text that cannot be read.
    """
    library.read(session)  # before anything is locked or made
    try:
        lock = library.open(session)
    except OSError as error:  # a read-only folder: it can be read and gone on with, and every turn tries to save
        opened = OpenSession(library, rows, library.read(session), None, has_rows=session)
        opened._tell_trouble(error, opened.note, has_text=False)
        return opened
    record = library.read(session)  # as it is now that nobody else writes it
    if lock is not None:
        return OpenSession(library, rows, record, lock, has_rows=session)
    copy, forked = _copy(library, record)
    opened = OpenSession(library, rows, copy, None, has_rows=session)
    opened.note(forked)
    return opened


def _copy(library: Library, record: SessionRecord) -> tuple[SessionRecord, SessionForked]:
    """The same conversation as a session of its own, and how to tell that."""
    copy = dataclasses.replace(record, id=library.new_id(), created=now(), origin=record.id)
    message = f"session {record.id} goes on in another process; this goes on as a copy of it, session {copy.id}"
    return copy, SessionForked(message, session=copy.id, origin=record.id)
