"""Overflow "summarise": the oldest messages of a conversation make room for a summary that the model itself writes.

The system prompt, pinned messages and the newest turns stay as they are. What is summed up is read in pieces that fit
the context, each with the summary so far, so that nothing is left out unread. The summary stands in the system prompt,
where every chat template lets it stand. It is only as good as the model: small ones lose most of what they sum up, and
the event says which messages were replaced and by what.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wattwise.events import Summarised, told_messages

if TYPE_CHECKING:
    from wattwise.model import Model

_KEPT_SHARE, _REPLY_SHARE, _SUMMARY_SHARE, _PIECE_SHARE = 0.4, 0.2, 0.12, 0.35  # of the context
_HEADING = "Summary of the earlier conversation:"
_ASK = "Sum up this conversation in a few short sentences. Keep names, numbers and what was decided."

Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortened:
    """messages: what the conversation is from now on. pinned: the same pins, by their new indices."""

    messages: list[Message]
    pinned: set[int]
    event: Summarised


def shortened(
    model: Model,
    messages: Sequence[Message],
    tools: Sequence[Message] | None,
    pinned: Collection[int],
    max_tokens: int | None,
) -> Shortened | None:
    """The conversation with its oldest messages summed up, or None where it fits, or where nothing could be summed up.

    max_tokens: what the next reply may take.
    """
    capacity = model.engine.kv.capacity_tokens
    reply = min(max_tokens or capacity, int(_REPLY_SHARE * capacity))
    before = len(model.prompt_ids(messages, tools=tools))
    if before + reply < capacity:
        return None
    old = _oldest(model, messages, tools, pinned, int(_KEPT_SHARE * capacity))
    if not old:
        return None
    summary = _summary(model, [messages[i] for i in old], capacity)
    kept = [(i, dict(message)) for i, message in enumerate(messages) if i not in old]
    if not kept or kept[0][1].get("role") != "system":
        kept.insert(0, (-1, {"role": "system", "content": ""}))
    first, _, _ = str(kept[0][1]["content"]).partition(_HEADING)
    kept[0][1]["content"] = f"{first.rstrip()}\n\n{_HEADING} {summary}".strip()
    made = [message for _, message in kept]
    after = len(model.prompt_ids(made, tools=tools))
    return Shortened(
        messages=made,
        pinned={new for new, (i, _) in enumerate(kept) if i in pinned},
        event=Summarised(
            f"{told_messages(old)} were replaced by a summary, {before} tokens by {after}",
            messages=tuple(old),
            summary=summary,
            tokens_before=before,
            tokens_after=after,
        ),
    )


def _oldest(
    model: Model, messages: Sequence[Message], tools: Sequence[Message] | None, pinned: Collection[int], room: int
) -> list[int]:
    """Indices to sum up: the oldest free ones, until the rest takes at most `room` tokens. Never the last message.

    Whole exchanges go: what stays begins with a user's turn, as most templates insist.
    """
    free = [i for i, m in enumerate(messages[:-1]) if m.get("role") != "system" and i not in pinned]
    gone: list[int] = []
    for index in free:
        rest = [m for i, m in enumerate(messages) if i not in gone]
        begins = next((m for m in rest if m.get("role") != "system"), None)
        if begins is not None and begins.get("role") == "user" and len(model.prompt_ids(rest, tools=tools)) <= room:
            break
        gone.append(index)
    return gone


def _summary(model: Model, messages: Sequence[Message], capacity: int) -> str:
    """Written by the model, piece by piece."""
    lines = [f"{message.get('role', '')}: {message.get('content', '')}" for message in messages]
    summary, piece = "", ""
    most = int(_PIECE_SHARE * capacity)
    for part in _parts(model, lines, most):
        if piece and len(model.tokenizer.encode(piece + part)) > most:
            summary, piece = _ask(model, summary, piece, capacity), ""
        piece += part
    return _ask(model, summary, piece, capacity)


def _parts(model: Model, lines: Sequence[str], most: int) -> list[str]:
    """Lines, those too long for a piece of their own cut into some that are not."""
    parts: list[str] = []
    for line in lines:
        count = -(-len(model.tokenizer.encode(line)) // most)
        size = -(-len(line) // count)
        parts += [f"{line[i : i + size]}\n" for i in range(0, len(line), size)]
    return parts


def _ask(model: Model, summary: str, piece: str, capacity: int) -> str:
    earlier = f"{_HEADING} {summary}\n\n" if summary else ""
    limit = max(8, int(_SUMMARY_SHARE * capacity))
    reply = model.chat(f"{_ASK}\n\n{earlier}{piece}", max_tokens=limit, temperature=0)
    return " ".join(reply.text.split())
