"""`wattwise chat [MODEL]`: a conversation in the terminal."""

from __future__ import annotations

import argparse

from wattwise.cli import common

HELP = "a conversation in the terminal"


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

    if options.json:
        raise ValueError("chat talks to a person; for JSON use: wattwise run --json")
    with wattwise.load(
        options.model, on_progress=common.show_progress("loading"), **common.load_arguments(options)
    ) as model:
        return PlainChat(model, system=options.system, options=common.sampling_arguments(options)).run()
