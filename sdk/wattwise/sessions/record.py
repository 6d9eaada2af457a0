"""The text of a saved conversation, as a JSON file with a checksum: all that is needed to go on, without any KV rows.

The file is {"format": 1, "sha256": ..., "conversation": {...}}, where the hash is of the conversation as `_canonical`
writes it, whatever the blanks in the file. Names keep their order: a template writes tools as they come.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wattwise_devices.errors import CorruptArtifact, LoadError, SessionError
from wattwise_runtimes.formats.atomic import write_file_atomically
from wattwise_runtimes.formats.json_file import DEFAULT_MAX_BYTES, parse_json, read_json

FORMAT = 1
_TITLE_CHARACTERS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """One conversation. messages as in `Conversation.messages`, the system prompt among them; pinned: indices of those
    that KV eviction must not touch. model: "builtin" or an absolute path. created, updated: UTC, ISO 8601. origin: the
    session it was forked from.
    """

    id: str
    model: str
    created: str
    updated: str
    title: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    pinned: tuple[int, ...] = ()
    origin: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data with stable names."""
        return {**dataclasses.asdict(self), "pinned": list(self.pinned)}


def now() -> str:
    """This moment as it stands in a record; later moments sort later."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def title_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The beginning of the first user's message, on one line."""
    texts = (m["content"] for m in messages if m.get("role") == "user" and isinstance(m.get("content"), str))
    words = " ".join(next(texts, "").split())
    return words if len(words) <= _TITLE_CHARACTERS else words[: _TITLE_CHARACTERS - 1].rstrip() + "…"


def write_record(path: Path, record: SessionRecord) -> None:
    """Replace the file. Raises SessionError for messages that no JSON file can hold, OSError from the disk."""
    try:
        text = _canonical(record.to_json())
        conversation = parse_json(text, path)  # as it will be read: what that refuses must not be written
        _record(conversation, path)
    except (TypeError, ValueError, RecursionError) as error:
        raise SessionError(f"the messages cannot be kept as JSON: {error}") from error
    whole = {"format": FORMAT, "sha256": _digest(conversation), "conversation": conversation}
    data = json.dumps(whole, ensure_ascii=False, indent=1).encode()
    if len(data) > DEFAULT_MAX_BYTES:
        raise SessionError(f"the conversation takes {len(data)} bytes as JSON; at most {DEFAULT_MAX_BYTES} are kept")
    write_file_atomically(path, data)


def read_record(path: Path) -> SessionRecord:
    """A checked record. Raises CorruptArtifact for a damaged or foreign file, LoadError where none can be read."""
    try:
        whole = read_json(path)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        found = whole.get("format") if isinstance(whole, dict) else type(whole).__name__
        raise CorruptArtifact(path, "format", found, FORMAT)
    conversation = whole.get("conversation")
    digest = _digest(conversation)
    if whole.get("sha256") != digest:
        raise CorruptArtifact(path, "sha256", whole.get("sha256"), digest)
    return _record(conversation, path)


def _canonical(value: Any) -> bytes:
    """One spelling of JSON data. Halves of surrogate pairs become '?', as the tokenizer reads them."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _digest(conversation: Any) -> str:
    return hashlib.sha256(_canonical(conversation)).hexdigest()


def _record(value: Any, path: Path) -> SessionRecord:
    """The record that this JSON value is; CorruptArtifact for one that is none."""
    names = {f.name for f in dataclasses.fields(SessionRecord)}
    if not isinstance(value, dict) or set(value) != names:
        raise CorruptArtifact(path, "conversation", value, f"an object with {', '.join(sorted(names))}")
    for name in ("id", "model", "created", "updated", "title"):
        if not isinstance(value[name], str):
            raise CorruptArtifact(path, name, value[name], "a text")
    messages, tools, pinned, origin = (value[name] for name in ("messages", "tools", "pinned", "origin"))
    if not isinstance(messages, list) or not all(_has_role(message) for message in messages):
        raise CorruptArtifact(path, "messages", messages, "a list of objects with a role")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise CorruptArtifact(path, "tools", tools, "null or a list of objects")
    if not isinstance(pinned, list) or not all(type(i) is int and 0 <= i < len(messages) for i in pinned):
        raise CorruptArtifact(path, "pinned", pinned, "indices of messages")
    if origin is not None and not isinstance(origin, str):
        raise CorruptArtifact(path, "origin", origin, "null or a text")
    return SessionRecord(**{**value, "pinned": tuple(pinned)})


def _has_role(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)
