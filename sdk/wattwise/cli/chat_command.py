"""`wattwise chat [MODEL]`: a conversation in the terminal, saved as it goes on."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from wattwise.cli import common
from wattwise.events import in_words

if TYPE_CHECKING:
    from wattwise.model import Model

HELP = "a conversation in the terminal; with --json, one message a line in, one object a line out"
_LATEST = ""  # --resume without an id


def arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the budget, sampling, which front end, and whether it is saved."""
    add_chat_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    saving = parser.add_mutually_exclusive_group()
    saving.add_argument(
        "--resume", nargs="?", const=_LATEST, metavar="ID", help="go on with a saved session; without ID the last one"
    )
    saving.add_argument("--no-session", action="store_true", help="keep nothing of this conversation on disk")


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """What a chat needs whether it is new or goes on."""
    common.add_model_argument(parser)
    parser.add_argument("--plain", action="store_true", help="a plain prompt (in this version the only front end)")
    common.add_sampling_arguments(parser)
    common.add_load_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Find out which conversation it is, and talk."""
    if options.resume is None:
        return talk(options, session=None if options.no_session else "new", system=options.system)
    if options.system is not None:
        raise ValueError("a saved session has its own system prompt: leave --system out, or start without --resume")
    from wattwise.sessions.library import Library
    from wattwise.settings import resolve
    from wattwise.store import model_reference

    library = Library.here()
    if options.resume == _LATEST:
        found = library.latest(model_reference(options.model or resolve()["model"]))
    else:
        found = library.find(options.resume)
        options.model = options.model or library.read(found).model
    return talk(options, session=found)


def talk(options: argparse.Namespace, *, session: str | None, system: str | None = None) -> int:
    """Load the model and hand over to the front end. session: as in `Model.conversation`."""
    import wattwise
    from wattwise_tui.plain import PlainChat

    with wattwise.load(
        options.model, on_progress=common.show_progress("loading"), **common.load_arguments(options)
    ) as model:
        if options.json:
            return _json_lines(model, options, session, system)
        return PlainChat(model, system=system, options=common.sampling_arguments(options), session=session).run()


def _json_lines(model: Model, options: argparse.Namespace, session: str | None, system: str | None) -> int:
    """For programs: each line of standard input is a message, each answer one JSON object on a line."""
    with model.conversation(system, session=session) as chat:
        for line in sys.stdin:
            text = line.rstrip("\n")
            if text.strip():
                common.print_json(chat.say(text, **common.sampling_arguments(options)).to_json())
                sys.stdout.flush()
    for told in in_words(chat.take_notes()):
        print(f"[{told}]", file=sys.stderr)
    return 0
