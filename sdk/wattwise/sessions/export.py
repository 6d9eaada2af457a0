"""A saved conversation for people and other programs: Markdown, or JSON that `Conversation.load` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wattwise.sessions.record import SessionRecord
from wattwise_runtimes.formats.atomic import atomic_file

_MARKDOWN, _JSON = (".md", ".markdown"), (".json",)


def export_session(record: SessionRecord, path: Path) -> None:
    """Write a new file. Raises ValueError for a name that is neither .json nor .md, FileExistsError if it is there."""
    kind = path.suffix.lower()
    if kind in _JSON:
        text = json.dumps(record.to_json(), ensure_ascii=False, indent=2) + "\n"
    elif kind in _MARKDOWN:
        text = to_markdown(record)
    else:
        raise ValueError(f"{path.name}: sessions are exported to .json or .md; end the name with one of them")
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def to_markdown(record: SessionRecord) -> str:
    """A heading for each message, its text as it is."""
    facts = [f"session {record.id}", f"model {record.model}", f"begun {record.created}", f"last turn {record.updated}"]
    if record.origin is not None:
        facts.append(f"copied from session {record.origin}")
    head = [f"# {record.title or 'Untitled'}", "\n".join(f"- {fact}" for fact in facts)]
    return "\n\n".join([*head, *(_message(message) for message in record.messages)]) + "\n"


def _message(message: dict[str, Any]) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"## {message['role'].capitalize()}\n\n{text}"
