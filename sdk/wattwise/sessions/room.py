"""What may be deleted: rows beyond the byte cap, the least recently used session's first; files that nobody needs; and
sessions that a person wants gone. Texts go for no other reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from wattwise.sessions.blobs import Blob
from wattwise.sessions.library import Library
from wattwise_devices.errors import LoadError, SessionError


def delete_session(library: Library, session: str) -> None:
    """Text and rows. Raises SessionError if a process has it open, OSError from the disk or if it is not there."""
    with library.lock():
        lock = library.open_existing(session)
        if lock is None:
            raise SessionError(f"session {session} is open in another process; close it there first")
        with lock:
            # the text goes after the rows: whatever ends us, what is left is a session that can be deleted again
            library.index_path(session).unlink(missing_ok=True)
            _remove_folder(library.root / session)
        Room(library).remove_unused()


class Room:
    """Which sessions need which files. Made under the library's lock, and valid as long as it is held.

    Damaged indexes are removed: they say nothing. spared: files that stay, needed or not.
    """

    def __init__(self, library: Library, spared: Iterable[Blob] = ()) -> None:
        self._library = library
        self._spared = {blob.name for blob in spared}
        self._needs: dict[str, tuple[Blob, ...]] = {}
        self._used_ns: dict[str, int] = {}
        self._index_bytes: dict[str, int] = {}
        for session in library.ids():
            path = library.index_path(session)
            try:
                index = library.index(session)
                if index is not None:
                    stat = path.stat()
                    self._needs[session] = index.blobs
                    self._used_ns[session], self._index_bytes[session] = stat.st_mtime_ns, stat.st_size
            except LoadError:
                path.unlink(missing_ok=True)

    @property
    def taken_bytes(self) -> int:
        """Of all row files, wanted or not, and the indexes."""
        return sum(self._library.blobs.sizes().values()) + sum(self._index_bytes.values())

    def remove_unused(self) -> None:
        """Delete files that no session needs, and what killed processes left. OSError where the folder is read-only."""
        wanted = {blob.name for blobs in self._needs.values() for blob in blobs}
        for name in set(self._library.blobs.sizes()) - wanted - self._spared:
            self._library.blobs.remove(name)
        for session in self._library.ids():
            if self._library.is_leftover(session):
                self._remove_leftover(session)

    def make(self, needed_bytes: int, own: str) -> bool:
        """Evict sessions until so many more bytes fit below the cap, `own` at the very last; whether they fit now."""
        self.remove_unused()
        while self.taken_bytes + needed_bytes > self._library.cap_bytes:
            if not self._needs:
                return False
            self.evict(min(self._needs, key=lambda session: (session == own, self._used_ns[session], session)))
        return True

    def evict(self, session: str) -> None:
        """Its rows go; its text stays. OSError where the folder is read-only."""
        self._library.index_path(session).unlink(missing_ok=True)
        for known in (self._needs, self._used_ns, self._index_bytes):
            known.pop(session, None)
        self.remove_unused()

    def _remove_leftover(self, session: str) -> None:
        lock = self._library.open_existing(session)
        if lock is not None:  # nobody is about to fill it
            with lock:
                _remove_folder(self._library.root / session)


def _remove_folder(folder: Path) -> None:
    """With the temporary files that a killed process may have left in it."""
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
    folder.rmdir()
