"""`wattwise plan [MODEL]`: what a load would do and cost, loading nothing."""

from __future__ import annotations

import argparse

from wattwise.cli import common

HELP = "what would run, where and at what cost, without loading it; exit code 3 if nothing fits"


def arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, the budget, and what to predict for."""
    common.add_model_argument(parser)
    parser.add_argument("--explain", action="store_true", help="show where each setting came from")
    parser.add_argument("--prompt-tokens", type=int, metavar="N", help="length of the prompt to predict for")
    common.add_load_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print the plan."""
    import wattwise

    plan = wattwise.plan(
        options.model,
        prompt_tokens=options.prompt_tokens,
        on_progress=common.show_progress("lowering to ONNX"),
        **common.load_arguments(options),
    )
    settings = plan.settings if options.explain else None
    if options.json:
        data = plan.to_json()
        common.print_json(data if settings is None else {**data, "settings": settings.to_json()})
    else:
        print(plan)
        if settings is not None:
            print(f"\n{settings.table()}")
    return 0
