"""Text of a reply while it grows: token by token, always valid UTF-8, stop strings found across tokens.

Not here: deciding when a reply ends for other reasons (end tokens, limits).
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from wattwise_runtimes.text.tokenizer import Tokenizer


class TextStream:
    """Feed tokens with `push`, show what it returns, and end with `flush`.

    stop: texts that end the reply; they and what follows are not shown. A special token ends it too where its own
    text is one of them. at_start: the tokens begin a text, so the space that the tokenizer puts there is dropped.
    stopped: the stop text that was found, or None. text: everything shown so far.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, at_start: bool = False) -> None:
        if isinstance(stop, str):
            raise ValueError(f"stop is the text {stop!r}; a list of texts is needed")
        for text in stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop text {text!r}: a non-empty text is needed")
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._stops = tuple(dict.fromkeys(stop))
        self._firsts = frozenset(text[0] for text in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = at_start and tokenizer.strips_first_space
        self._pending = ""  # decoded, but could be the beginning of a stop text
        self._shown: list[str] = []

    @property
    def text(self) -> str:
        """Everything shown so far."""
        if len(self._shown) > 1:
            self._shown = ["".join(self._shown)]
        return self._shown[0] if self._shown else ""

    def push(self, token: int) -> str:
        """One more token of the reply: the text that can be shown now, often empty."""
        if self.stopped is not None:
            return ""
        if self._tokenizer.is_special(token):
            return self._special(token)
        return self._advance(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def flush(self) -> str:
        """The end of the reply: what was held back. An incomplete character becomes U+FFFD."""
        if self.stopped is not None:
            return ""
        out = self._advance(self._decoder.decode(b"", True))
        if self.stopped is None:
            out += self._show(self._pending)
            self._pending = ""
        return out

    def _special(self, token: int) -> str:
        name = self._tokenizer.token_text(token)
        if name not in self._stops:
            return ""
        out = self.flush()
        self.stopped = self.stopped or name
        return out

    def _advance(self, fresh: str) -> str:
        if not fresh:
            return ""
        if self._drop_space:
            self._drop_space = False
            fresh = fresh.removeprefix(" ")
        if not self._stops:
            return self._show(fresh)
        pending = self._pending + fresh
        found = min(((at, stop) for stop in self._stops if (at := pending.find(stop)) >= 0), default=None)
        if found is not None:
            self.stopped = found[1]
            self._pending = ""
            return self._show(pending[: found[0]])
        keep = self._held_back(pending)
        self._pending = pending[keep:]
        return self._show(pending[:keep])

    def _held_back(self, pending: str) -> int:
        """Index from which the text could still become a stop text."""
        for at in range(max(0, len(pending) - self._longest + 1), len(pending)):
            if pending[at] in self._firsts and any(stop.startswith(pending[at:]) for stop in self._stops):
                return at
        return len(pending)

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
        return text
