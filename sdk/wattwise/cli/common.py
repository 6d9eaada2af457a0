"""Arguments that several commands share, and how they become SDK calls."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any

from wattwise.budget import Budget


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """MODEL, optional: None leaves it to the settings (WATTWISE_MODEL, config.toml), which end at "builtin"."""
    parser.add_argument("model", nargs="?", default=None, metavar="MODEL", help="default: builtin")


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything that decides how a model is loaded. What is not given comes from the settings."""
    budget = parser.add_argument_group("budget")
    budget.add_argument("--memory", metavar="SIZE", help="the most resident memory to use, e.g. 900MB or 3.5GiB")
    budget.add_argument("--power", metavar="W", help="the most watts on average, e.g. 6W (needs a meter or a profile)")
    budget.add_argument("--energy", metavar="J", help="the most joules per generated token, e.g. 0.5J")
    budget.add_argument("--max-celsius", metavar="C", help="the hottest the device may get, e.g. 75C")
    budget.add_argument("--battery-floor", metavar="PERCENT", help="no work below this charge, e.g. 20%%")
    budget.add_argument("--ttft", metavar="TIME", help="the longest predicted wait for the first token, e.g. 300ms")
    budget.add_argument("--tokens-per-second", metavar="N", help="the slowest predicted decoding")
    group = parser.add_argument_group("engine")
    group.add_argument("--engine", choices=("auto", "llamacpp", "onnx", "reference"), default=None)
    group.add_argument("--context", type=int, metavar="N", help="tokens that the model can hold")
    group.add_argument(
        "--kv",
        metavar="TYPE,POLICY:BUDGET",
        help="KV cache: its type (f16, q8_0, int8, ...), how to evict from it (keydiff:512, window:50%%), or both",
    )
    group.add_argument(
        "--kv-guard", metavar="SHARE", help="look at evictions: warn below this share of same choices, or 0.9:widen"
    )
    group.add_argument(
        "--kv-spill", metavar="SIZE", help="keep evicted rows on disk, to bring back messages pinned later"
    )
    group.add_argument("--overflow", metavar="HOW", help="for texts beyond the context: error, evict, shift, summarise")
    group.add_argument("--threads", type=int, metavar="N", help="by default what measured fastest here")
    group.add_argument("--threads-batch", type=int, metavar="N", help="to read prompts with; default: as --threads")


def load_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `wattwise.load` and `wattwise.plan`: only what the command line says."""
    bounds = {
        "memory": options.memory,
        "power": options.power,
        "energy": options.energy,
        "temperature": options.max_celsius,
        "battery_floor": options.battery_floor,
        "ttft_ms": options.ttft,
        "tokens_per_second": options.tokens_per_second,
    }
    return {
        "budget": Budget(**{name: text for name, text in bounds.items() if text is not None}),
        "engine": options.engine,
        "context": options.context,
        **_kv(options.kv),
        "kv_guard": options.kv_guard,
        "kv_spill": options.kv_spill,
        "overflow": options.overflow,
        "threads": options.threads,
        "threads_batch": options.threads_batch,
    }


def _kv(text: str | None) -> dict[str, str | None]:
    """kv_type and kv_policy from `TYPE`, `POLICY[:BUDGET]` or both with a comma: a policy begins with its name."""
    from wattwise.kv.policy import policy_names

    found: dict[str, str | None] = {"kv_type": None, "kv_policy": None}
    for part in (text or "").split(","):
        name = "kv_policy" if part.split(":")[0] in policy_names() else "kv_type"
        if part and found[name] is not None:
            raise ValueError(f"--kv {text} names two of {name}: {found[name]} and {part}")
        if part:
            found[name] = part
    return found


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
    _show_notices()

    def show(fraction: float) -> bool:
        end = "\r" if fraction < 1 else "\r\x1b[K"
        print(f"{label} {100 * fraction:3.0f} %", end=end, file=sys.stderr, flush=True)
        return True

    return show


def _show_notices() -> None:
    """What the library has to say while one waits, such as that it measures."""
    log, native = logging.getLogger("wattwise"), logging.getLogger("wattwise.llamacpp")
    if native.level == logging.NOTSET:  # what native code says is for those who ask for it
        native.setLevel(logging.ERROR)
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, ensure_ascii=False, default=str))
