"""Arguments that several commands share, and how they become SDK calls."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from wattwise.budget import Budget


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """MODEL, optional, `builtin` by default (or WATTWISE_MODEL)."""
    default = os.environ.get("WATTWISE_MODEL", "builtin")
    parser.add_argument("model", nargs="?", default=default, metavar="MODEL", help=f"default: {default}")


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that decides how a model is loaded."""
    group = parser.add_argument_group("budget and engine")
    group.add_argument("--memory", metavar="SIZE", help="the most resident memory to use, e.g. 900MB or 3.5GiB")
    group.add_argument("--engine", choices=("auto", "llamacpp", "onnx", "reference"), default=None)
    group.add_argument("--context", type=int, metavar="N", help="tokens that the model can hold")
    group.add_argument("--kv", metavar="TYPE", help="type of the KV cache: f16, q8_0, ... (chosen to fit by default)")
    group.add_argument("--threads", type=int, metavar="N")


def load_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `wattwise.load` and `wattwise.plan`: command line before environment before default."""
    memory = options.memory or os.environ.get("WATTWISE_MEMORY")
    engine = options.engine or os.environ.get("WATTWISE_ENGINE") or "auto"
    return {
        "budget": Budget(memory=memory) if memory else None,
        "engine": engine,
        "context": options.context,
        "kv_type": options.kv,
        "threads": options.threads,
    }


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, metavar="N", help="end the reply after so many tokens")
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the likeliest token every time")
    group.add_argument("--top-k", type=int, metavar="N")
    group.add_argument("--top-p", type=float, metavar="P")
    group.add_argument("--min-p", type=float, metavar="P")
    group.add_argument("--repeat-penalty", type=float, metavar="R")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same reply")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end the reply before this text")


def sampling_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `Model.stream`: only what was given."""
    given = {
        name: getattr(options, name)
        for name in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
        if getattr(options, name) is not None
    }
    return {**given, "max_tokens": options.max_tokens, "stop": tuple(options.stop)}


def show_progress(label: str) -> Any:
    """A callback for 0..1 that keeps one line on a terminal, and stays silent elsewhere."""
    if not sys.stderr.isatty():
        return None

    def show(fraction: float) -> bool:
        end = "\r" if fraction < 1 else "\r\x1b[K"
        print(f"{label} {100 * fraction:3.0f} %", end=end, file=sys.stderr, flush=True)
        return True

    return show


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, ensure_ascii=False, default=str))
