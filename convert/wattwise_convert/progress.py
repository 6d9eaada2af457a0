"""How far a conversion is, as one number from 0 to 1 that only grows, whatever stages it is made of.

A caller's function gets the number and may return False to stop. Not here: drawing bars.
"""

from __future__ import annotations

from collections.abc import Callable

from wattwise_devices.errors import ConvertError

OnProgress = Callable[[float], object]


class Progress:
    """Counts bytes of work done. `stage` gives a part of the range to a piece of work with its own total."""

    def __init__(self, report: OnProgress | None, start: float = 0.0, stop: float = 1.0) -> None:
        self._report, self._start, self._stop = report, start, stop
        self._total_bytes, self._done_bytes = 1, 0

    def expect(self, total_bytes: int) -> None:
        """How many bytes make the whole."""
        self._total_bytes, self._done_bytes = max(1, total_bytes), 0

    def add(self, done_bytes: int) -> None:
        """So many bytes more are done."""
        self.set(self._done_bytes + done_bytes)

    def set(self, done_bytes: int) -> None:
        """So many bytes are done altogether. Raises ConvertError when the caller asks to stop."""
        self._done_bytes = min(done_bytes, self._total_bytes)
        if self._report is None:
            return
        share = self._done_bytes / self._total_bytes
        if self._report(self._start + share * (self._stop - self._start)) is False:
            raise ConvertError("the conversion was stopped; nothing was written")

    def stage(self, start: float, stop: float) -> Progress:
        """A new counter for the part start..stop of this one's range."""
        width = self._stop - self._start
        return Progress(self._report, self._start + start * width, self._start + stop * width)
