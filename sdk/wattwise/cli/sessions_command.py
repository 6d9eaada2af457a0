"""`wattwise sessions`: saved conversations. ids may be shortened, as far as only one session begins so."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattwise.cli import chat_command, common
from wattwise.units import format_bytes

if TYPE_CHECKING:
    from wattwise.sessions.library import Library, Listed

HELP = "saved conversations: list (what it does without an action), show, resume, export, delete"


def arguments(parser: argparse.ArgumentParser) -> None:
    """One action and its arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    _action(actions, "list", "every saved session, the latest first")
    show = _action(actions, "show", "the text of one")
    show.add_argument("id", metavar="ID")
    resume = _action(actions, "resume", "go on with one in the terminal chat, with its model or another")
    resume.add_argument("id", metavar="ID")
    chat_command.add_chat_arguments(resume)
    export = _action(actions, "export", "write one as JSON or Markdown, by the name's ending")
    export.add_argument("id", metavar="ID")
    export.add_argument("file", metavar="FILE", type=Path, help="must not be there yet; ends in .json or .md")
    delete = _action(actions, "delete", "remove texts and rows for good")
    delete.add_argument("ids", metavar="ID", nargs="+")


def _action(actions: Any, name: str, words: str) -> argparse.ArgumentParser:
    made = actions.add_parser(name, help=words, description=words)
    made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON instead of words")
    return made


def run(options: argparse.Namespace) -> int:
    """Carry the action out."""
    from wattwise.sessions.library import Library

    library = Library.here()
    action = {"show": _show, "resume": _resume, "export": _export, "delete": _delete}.get(options.action, _list)
    return action(library, options)


def _list(library: Library, options: argparse.Namespace) -> int:
    listed = library.overview()
    taken = sum(library.blobs.sizes().values())
    if options.json:
        rows = [_as_json(item) for item in listed]
        common.print_json({"sessions": rows, "rows_bytes": taken, "sessions_bytes": library.cap_bytes})
        return 0
    for item in listed:
        print(_line(item))
    allowed = f"of at most {format_bytes(library.cap_bytes)}" if library.cap_bytes else "(sessions_bytes is 0)"
    count = "1 session" if len(listed) == 1 else f"{len(listed)} sessions"
    print(f"{count}, {format_bytes(taken)} of rows {allowed}")
    return 0


def _line(item: Listed) -> str:
    record = item.record
    if record is None:
        return f"{item.id}  cannot be read: {item.problem}"
    when, model = record.updated[:16].replace("T", " "), Path(record.model).name
    kept = format_bytes(item.rows_bytes) if item.tokens else "no rows"
    return f"{item.id}  {when}  {len(record.messages):>4} messages  {kept:>9}  {model}  {record.title}"


def _as_json(item: Listed) -> dict[str, Any]:
    record = item.record
    return {
        "id": item.id,
        "title": record.title if record is not None else None,
        "model": record.model if record is not None else None,
        "created": record.created if record is not None else None,
        "updated": record.updated if record is not None else None,
        "origin": record.origin if record is not None else None,
        "messages": len(record.messages) if record is not None else None,
        "tokens": item.tokens,
        "rows_bytes": item.rows_bytes,
        "problem": item.problem,
    }


def _show(library: Library, options: argparse.Namespace) -> int:
    from wattwise.sessions.export import to_markdown

    record = library.read(library.find(options.id))
    if options.json:
        common.print_json(record.to_json())
    else:
        print(to_markdown(record), end="")
    return 0


def _resume(library: Library, options: argparse.Namespace) -> int:
    found = library.find(options.id)
    options.model = options.model or library.read(found).model
    return chat_command.talk(options, session=found)


def _export(library: Library, options: argparse.Namespace) -> int:
    from wattwise.sessions.export import export_session

    record = library.read(library.find(options.id))
    export_session(record, options.file)
    if options.json:
        common.print_json({"id": record.id, "path": str(options.file)})
    else:
        print(f"wrote {len(record.messages)} messages to {options.file}")
    return 0


def _delete(library: Library, options: argparse.Namespace) -> int:
    from wattwise.sessions.room import delete_session

    found = [library.find(beginning) for beginning in options.ids]  # all of them, before the first is gone
    for session in dict.fromkeys(found):
        delete_session(library, session)
        if not options.json:
            print(f"deleted {session}")
    if options.json:
        common.print_json({"deleted": list(dict.fromkeys(found))})
    return 0
