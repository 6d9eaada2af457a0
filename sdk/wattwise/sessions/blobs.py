"""Files named by the SHA-256 of what is in them: written whole or not at all, never changed, equal ones kept once.

Not here: which of them are still wanted, and how many there may be. That is `library.py`, under its lock.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wattwise_devices.errors import CorruptArtifact, LoadError
from wattwise_runtimes.formats.atomic import atomic_file
from wattwise_runtimes.formats.checked import regular_file_size

_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One file's name and size in bytes."""

    name: str
    nbytes: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.nbytes < 0:
            raise CorruptArtifact("<blob>", "name and size", (self.name, self.nbytes), "a SHA-256 and a size")


class Blobs:
    """All files of one folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, data: bytes) -> Blob:
        """Write what is not there yet. A file of that name with other content (damaged) is replaced. OSError from the
        disk; nothing is left of a write that failed."""
        blob = Blob(name=hashlib.sha256(data).hexdigest(), nbytes=len(data))
        path = self._folder / blob.name
        if not _holds(path, data):
            with atomic_file(path, overwrite=True) as partial:
                partial.write_bytes(data)
        return blob

    def get(self, blob: Blob) -> bytes:
        """The content. Raises CorruptArtifact if it is not what the name says, LoadError if it is not there.

        The size is compared before anything is read.
        """
        path = self._folder / blob.name
        size = regular_file_size(path)
        if size != blob.nbytes:
            raise CorruptArtifact(path, "file size in bytes", size, blob.nbytes)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise LoadError(f"{path} cannot be read: {error.strerror}") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != blob.name:
            raise CorruptArtifact(path, "sha256", digest, blob.name)
        return data

    def has(self, blob: Blob) -> bool:
        """Whether a file of this name and size is there; its content is checked when it is read."""
        try:
            return os.stat(self._folder / blob.name).st_size == blob.nbytes
        except OSError:
            return False

    def sizes(self) -> dict[str, int]:
        """Bytes of every file in the folder, temporary ones too, by name."""
        return dict(self._scan())

    def remove(self, name: str) -> None:
        """Delete one; it may be gone already. OSError where the folder does not let us."""
        (self._folder / name).unlink(missing_ok=True)

    def _scan(self) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    yield entry.name, entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            return


def _holds(path: Path, data: bytes) -> bool:
    """Whether this file has exactly this content."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False
