"""Evicted rows on disk: whole messages, exported before they lose their first row, within a byte cap.

Files have no name, so whatever happens to the process they are gone with it; saved conversations are another matter
(`wattwise.sessions`). The message that was put away first goes first when the cap is reached.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import IO

_MOST_MESSAGES = 256  # each is an open file

Range = tuple[int, int]  # tokens of the text, from and to before


class Spill:
    """Rows by the range of tokens that they are of. cap_bytes: on disk, for all of them."""

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        self._folder, self._cap_bytes = folder, cap_bytes
        self._kept: OrderedDict[Range, tuple[IO[bytes], int]] = OrderedDict()
        self.problem: str | None = None  # why the last rows could not be put away

    @property
    def nbytes(self) -> int:
        """On disk now."""
        return sum(size for _, size in self._kept.values())

    def __contains__(self, tokens: Range) -> bool:
        return tokens in self._kept

    def put(self, tokens: Range, rows: bytes) -> bool:
        """Keep exported rows; whether they could be. A full disk or too small a cap is no error: see `problem`."""
        self.problem = None
        if len(rows) > self._cap_bytes:
            self.problem = f"{len(rows)} bytes are more than the cap of {self._cap_bytes}"
            return False
        while self._kept and (self.nbytes + len(rows) > self._cap_bytes or len(self._kept) >= _MOST_MESSAGES):
            self._close(next(iter(self._kept)))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it stays open as long as it is of use
        except OSError as error:
            self.problem = error.strerror or str(error)
            return False
        try:
            file.write(rows)
            file.flush()
        except OSError as error:
            file.close()
            self.problem = error.strerror or str(error)
            return False
        self._kept[tokens] = (file, len(rows))
        return True

    def take(self, tokens: Range) -> bytes | None:
        """The rows of exactly this range, which are not kept any longer; None where there are none, or not whole."""
        entry = self._kept.pop(tokens, None)
        if entry is None:
            return None
        file, size = entry
        with file:
            file.seek(0)
            rows = file.read()
        return rows if len(rows) == size else None

    def cut(self, tokens: int) -> None:
        """Forget what speaks of tokens from this one on: the text has changed there."""
        for known in [known for known in self._kept if known[1] > tokens]:
            self._close(known)

    def clear(self) -> None:
        """Forget everything."""
        self.cut(0)

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def _close(self, tokens: Range) -> None:
        file, _ = self._kept.pop(tokens)
        file.close()
