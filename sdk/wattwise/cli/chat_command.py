"""`wattwise chat [MODEL]`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from wattwise.cli import common

if TYPE_CHECKING:
    from wattwise.model import Model

HELP = "a conversation in the terminal; with --json, one message a line in, one object a line out"


def arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the budget, sampling, and which front end."""
    common.add_model_argument(parser)
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--plain", action="store_true", help="a plain prompt (in this version the only front end)")
    common.add_sampling_arguments(parser)
    common.add_load_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Load the model and hand over to the front end."""
    import wattwise
    from wattwise_tui.plain import PlainChat

    with wattwise.load(
        options.model, on_progress=common.show_progress("loading"), **common.load_arguments(options)
    ) as model:
        if options.json:
            return _json_lines(model, options)
        return PlainChat(model, system=options.system, options=common.sampling_arguments(options)).run()


def _json_lines(model: Model, options: argparse.Namespace) -> int:
    """For programs: each line of standard input is a message, each answer one JSON object on a line."""
    chat = model.conversation(options.system)
    for line in sys.stdin:
        text = line.rstrip("\n")
        if text.strip():
            common.print_json(chat.say(text, **common.sampling_arguments(options)).to_json())
            sys.stdout.flush()
    return 0
