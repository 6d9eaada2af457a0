"""The folder of all saved conversations: found by id, listed, read, written and deleted.

Texts are written by the process that holds the session's lock. What changes files that sessions share (rows, their
indexes, deleting) happens under the library's lock; readers take none, and treat what has gone meanwhile as not there.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from wattwise.paths import data_dir
from wattwise.sessions.blobs import Blobs
from wattwise.sessions.index import RowsIndex, read_index
from wattwise.sessions.lock import FileLock
from wattwise.sessions.record import SessionRecord, read_record, write_record
from wattwise.settings import Settings, resolve
from wattwise_devices.errors import Error, LoadError, SessionError

_ID = re.compile(r"[0-9a-f]{12}")
_ID_BYTES = 6
_TEXT, _INDEX, _LOCK = "conversation.json", "rows.index", "lock"
_WAIT_S = 10.0  # for the library's lock; whoever has it writes one turn's rows
_CACHED_IDS = 1 << 21  # token ids of indexes that are kept in memory, 4 bytes each


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One session in a list. record: None where `problem` says why its text cannot be read. tokens: whose rows are
    saved. rows_bytes: of its files, those that it shares with others among them."""

    id: str
    record: SessionRecord | None
    problem: str | None
    tokens: int
    rows_bytes: int


class Library:
    """All sessions below one folder, which need not exist yet. cap_bytes: what rows may take on disk, 0: keep none."""

    def __init__(self, root: Path, cap_bytes: int) -> None:
        self.root, self.cap_bytes = root, cap_bytes
        self.blobs = Blobs(root / "rows")
        self._indexes: dict[str, tuple[tuple[int, int, int], RowsIndex]] = {}

    @classmethod
    def here(cls, settings: Settings | None = None) -> Library:
        """The user's, with the cap that the settings say (by default those of environment and config.toml)."""
        settings = settings if settings is not None else resolve()
        return cls(data_dir() / "sessions", settings["sessions_bytes"])

    def ids(self) -> list[str]:
        """Of every session, damaged ones too. OSError for a folder that is there and cannot be read."""
        try:
            with os.scandir(self.root) as entries:
                return sorted(entry.name for entry in entries if _ID.fullmatch(entry.name) and entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def find(self, beginning: str) -> str:
        """The one id that begins so. Raises SessionError where there is none, or more than one."""
        found = [name for name in self.ids() if beginning and name.startswith(beginning.lower())]
        if not found:
            raise SessionError(f"there is no saved session {beginning!r}; `wattwise sessions` lists them")
        if len(found) > 1:
            raise SessionError(f"{beginning!r} is the beginning of {len(found)} sessions: {', '.join(found[:5])}")
        return found[0]

    def latest(self, model: str) -> str:
        """The session of this model that was updated last. Raises SessionError where there is none."""
        listed = [item.record for item in self.overview() if item.record is not None and item.record.model == model]
        if not listed:
            raise SessionError(f"there is no saved session of {model}; `wattwise sessions` lists those of all models")
        return max(listed, key=lambda record: record.updated).id

    def overview(self) -> list[Listed]:
        """Every session, the one updated last first; those that cannot be read at the end."""
        found = [self._listed(name) for name in self.ids() if not self.is_leftover(name)]
        return sorted(found, key=lambda item: item.record.updated if item.record is not None else "", reverse=True)

    def new_id(self) -> str:
        """One that no session has."""
        while os.path.lexists(self.root / (name := secrets.token_hex(_ID_BYTES))):
            pass
        return name

    def read(self, session: str) -> SessionRecord:
        """The text of a session. Raises CorruptArtifact for a damaged one, LoadError where none can be read."""
        record = read_record(self.root / session / _TEXT)
        if record.id != session:
            raise SessionError(f"{self.root / session} holds the text of session {record.id}")
        return record

    def write(self, record: SessionRecord) -> None:
        """Replace the text of a session that the caller has open. Raises SessionError, OSError."""
        write_record(self.root / record.id / _TEXT, record)

    def open(self, session: str) -> FileLock | None:
        """The right to write a session, which need not exist yet; None if another has it. OSError from the disk."""
        if not (self.root / session).is_dir():
            with self.lock():  # nobody may take the empty folder for a leftover
                (self.root / session).mkdir(exist_ok=True)
                return self.open_existing(session)
        return self.open_existing(session)

    def open_existing(self, session: str) -> FileLock | None:
        """As `open`, but FileNotFoundError for a session that does not exist."""
        return FileLock.try_take(self.root / session / _LOCK)

    def lock(self) -> FileLock:
        """For a `with` around everything that changes what sessions share. Raises SessionError if it is not to be had
        within ten seconds, OSError from the disk."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)  # what people say to a model is nobody else's business
        return FileLock.take(self.root / "lock", wait_s=_WAIT_S)

    def index_path(self, session: str) -> Path:
        """Where the index of its rows is, or would be."""
        return self.root / session / _INDEX

    def index(self, session: str) -> RowsIndex | None:
        """Of its rows; None where none are kept. Raises CorruptArtifact for a damaged one, LoadError."""
        path = self.index_path(session)
        try:
            stat = path.stat()
        except OSError:
            self._indexes.pop(session, None)
            return None
        version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        known = self._indexes.get(session)
        if known is None or known[0] != version:
            known = (version, read_index(path))
            if sum(len(index.state.ids) for _, index in self._indexes.values()) > _CACHED_IDS:
                self._indexes.clear()
            self._indexes[session] = known
        return known[1]

    def used_now(self, session: str) -> None:
        """Its rows were of use: they are evicted later than those that were not. A read-only library forgets that."""
        try:
            os.utime(self.index_path(session))
        except OSError:
            return

    def is_leftover(self, session: str) -> bool:
        """Whether the folder holds neither text nor rows (a process was killed while it deleted or began a session)."""
        return not any((self.root / session / name).exists() for name in (_TEXT, _INDEX))

    def _listed(self, session: str) -> Listed:
        record, problem = None, None
        try:
            record = self.read(session)
        except Error as error:
            problem = str(error)
        try:
            index = self.index(session)
        except LoadError:  # the rows are a shortcut; whoever resumes is told
            index = None
        blobs = index.blobs if index is not None else ()
        tokens = len(index.state.ids) if index is not None else 0
        return Listed(
            id=session, record=record, problem=problem, tokens=tokens, rows_bytes=sum(blob.nbytes for blob in blobs)
        )
