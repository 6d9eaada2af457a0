"""Which tokens of a prompt belong to which message, so that some can be protected and each loss can be named.

A template may write anything around a message, so boundaries are found by rendering: the tokens that the first k
messages share with the whole prompt are theirs. What a template refuses to render on its own (a system prompt without a
user's turn) belongs to the message after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wattwise_devices.errors import Error

PREAMBLE = -1  # what stands before the first message: tool definitions, a template's own words


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Tokens start to stop - 1 of the text. message: its index, or PREAMBLE. protected: never to be evicted."""

    start: int
    stop: int
    message: int
    role: str
    protected: bool = False


def message_spans(
    ids: Sequence[int],
    messages: Sequence[Mapping[str, Any]],
    encode: Callable[[Sequence[Mapping[str, Any]]], Sequence[int]],
    pinned: frozenset[int] = frozenset(),
) -> list[Span]:
    """Spans that cover all of `ids`, in order; the last one takes what the template adds for the answer.

    encode: ids of a conversation without the beginning of an answer. pinned: messages that must stay, beside the
    system's (and so the tool definitions, which stand there).
    """
    spans: list[Span] = []
    start = 0
    for index, message in enumerate(messages):
        is_last = index == len(messages) - 1
        stop = len(ids) if is_last else _shared(ids, encode, messages[: index + 1])
        if stop <= start:  # the template does not render so few messages: theirs is what the next one gets
            continue
        role = str(message.get("role", ""))
        spans.append(
            Span(start=start, stop=stop, message=index, role=role, protected=role == "system" or index in pinned)
        )
        start = stop
    return _with_silent_ones(spans, messages, pinned)


def _with_silent_ones(spans: list[Span], messages: Sequence[Mapping[str, Any]], pinned: frozenset[int]) -> list[Span]:
    """Protected messages without tokens of their own protect the span that took them in."""
    named = {span.message for span in spans}
    silent = [i for i, m in enumerate(messages) if i not in named and (m.get("role") == "system" or i in pinned)]
    return [replace(span, protected=True) if any(_host(spans, i) is span for i in silent) else span for span in spans]


def _host(spans: list[Span], message: int) -> Span | None:
    return next((span for span in spans if span.message > message), None)


def _shared(
    ids: Sequence[int],
    encode: Callable[[Sequence[Mapping[str, Any]]], Sequence[int]],
    messages: Sequence[Mapping[str, Any]],
) -> int:
    """How many tokens the conversation up to here has in common with the whole."""
    try:
        part = encode(messages)
    except Error:
        return 0
    n = min(len(ids), len(part))
    differ = np.flatnonzero(np.asarray(ids[:n]) != np.asarray(part[:n]))
    return int(differ[0]) if differ.size else n


def protected_tokens(spans: Sequence[Span]) -> np.ndarray:
    """Their places in the text, int64, increasing."""
    parts = [np.arange(span.start, span.stop) for span in spans if span.protected]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def by_message(spans: Sequence[Span], tokens: np.ndarray, after: int) -> list[tuple[int, int]]:
    """(message, how many of these tokens are its), in order. after: the message that tokens beyond all spans are of."""
    counts: dict[int, int] = {}
    for span in spans:
        inside = int(np.count_nonzero((tokens >= span.start) & (tokens < span.stop)))
        if inside:
            counts[span.message] = counts.get(span.message, 0) + inside
    beyond = int(np.count_nonzero(tokens >= spans[-1].stop)) if spans else len(tokens)
    if beyond:
        counts[after] = counts.get(after, 0) + beyond
    return sorted(counts.items())
