"""`wattwise plan [MODEL]`: what a load would do and cost, loading nothing."""

from __future__ import annotations

import argparse

from wattwise.cli import common

HELP = "what would run, where and at what cost, without loading it; exit code 3 if nothing fits"


def arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL and the budget."""
    common.add_model_argument(parser)
    common.add_load_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print the plan."""
    import wattwise

    plan = wattwise.plan(
        options.model, on_progress=common.show_progress("lowering to ONNX"), **common.load_arguments(options)
    )
    if options.json:
        common.print_json(plan.to_json())
    else:
        print(plan)
    return 0
