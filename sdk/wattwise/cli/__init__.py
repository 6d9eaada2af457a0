"""The command line: `wattwise COMMAND`. One module per command; each has HELP, `arguments(parser)` and `run(options)`.

Commands print for people, or one JSON object with --json. Exit codes: 0 done, 1 failed, 2 usage, 3 over budget.
This package is where the layers are put together: it alone may import the converter and the terminal chat.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence

from wattwise import __version__
from wattwise_devices.errors import BudgetError, ConvertError, Error, PlanError

COMMANDS = ("run", "chat", "sessions", "convert", "inspect", "plan", "devices", "bench", "eval")
EXIT_FAILED, EXIT_USAGE, EXIT_BUDGET, EXIT_INTERRUPTED, EXIT_PIPE = 1, 2, 3, 130, 141  # as shells say of signals


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `wattwise` script."""
    options = _parser().parse_args(argv)
    module = importlib.import_module(f"wattwise.cli.{options.command}_command")
    try:
        code = module.run(options) or 0
        sys.stdout.flush()  # a closed pipe is noticed here, not while the interpreter ends
        return code
    except BrokenPipeError:
        # Whoever read the output has seen enough (`| head`). What is still buffered goes nowhere, silently.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except BudgetError as error:
        return _fail(options, error, EXIT_BUDGET)
    except (PlanError, TypeError, ValueError) as error:
        if isinstance(error, Error) and not isinstance(error, (PlanError, ConvertError)):
            return _fail(options, error, EXIT_FAILED)
        return _fail(options, error, EXIT_USAGE)
    except (Error, OSError, MemoryError) as error:
        return _fail(options, error, EXIT_FAILED)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wattwise",
        description="Run language models on the device you have, inside the memory and the watts you allow.",
        epilog="MODEL is a .gguf file, an ONNX folder, or 'builtin' (the default), the small model inside the package.",
    )
    parser.add_argument("--version", action="version", version=f"wattwise {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"wattwise.cli.{name}_command")
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of words")
        module.arguments(sub)
    return parser


def _fail(options: argparse.Namespace, error: BaseException, code: int) -> int:
    if options.json:
        fields = {"type": type(error).__name__, "message": str(error), "exit_code": code}
        for name in ("needed", "allowed", "would_fit", "prompt_tokens", "limit", "field", "value", "path"):
            if hasattr(error, name):
                fields[name] = getattr(error, name)
        print(json.dumps({"error": fields}, default=str))
    print(f"wattwise: {error}", file=sys.stderr)
    return code
