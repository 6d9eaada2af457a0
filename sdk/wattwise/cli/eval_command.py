"""`wattwise eval [MODEL] TEXT`: perplexity and bits per byte; KL and top-1 agreement against another model."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import sys
from pathlib import Path

from wattwise.cli import common
from wattwise.settings import resolve

HELP = "perplexity and bits per byte of a text; with --against, the distance from another model"


def arguments(parser: argparse.ArgumentParser) -> None:
    """[MODEL] TEXT, and how to cut the text."""
    parser.add_argument("words", nargs="+", metavar="[MODEL] TEXT", help="TEXT is a file, or '-' for standard input")
    parser.add_argument("--against", metavar="OTHER", help="a model with the same vocabulary, taken as the truth")
    parser.add_argument("--window", type=int, default=512, metavar="N", help="tokens scored at a time (default 512)")
    parser.add_argument("--split", metavar="TEXT", help="cut the text here, and score the first window of each part")
    parser.add_argument("--parts", metavar="A:B", help="with --split: only parts A to B-1, counted from 0")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="stop after so many scored tokens")
    common.add_load_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Score and print."""
    import wattwise
    from wattwise.evaluation import evaluate

    name, text = _model_and_text(options)
    if options.window < 2:
        raise ValueError("a window needs at least 2 tokens")
    load = common.load_arguments(options)
    with contextlib.ExitStack() as stack:
        if load["context"] is None:
            load["context"] = options.window
        model = stack.enter_context(wattwise.load(name, **load))
        other = stack.enter_context(wattwise.load(options.against, **load)) if options.against else None
        found = evaluate(
            model, text, window=options.window, split=_split(options), against=other, max_tokens=options.max_tokens
        )
    if options.json:
        common.print_json({"model": name, "against": options.against, **found.to_json()})
        return 0
    print(f"{found.tokens} tokens, {found.bytes} bytes")
    print(f"perplexity {found.perplexity:.4f}  ({found.nats_per_token:.5f} nats per token)")
    print(f"bits per byte {found.bits_per_byte:.4f}")
    if found.kl_nats is not None and found.same_top1 is not None:
        print(f"KL from {options.against} {found.kl_nats / found.tokens:.6f} nats per token")
        print(f"same likeliest token {100 * found.same_top1 / found.tokens:.2f} %")
    return 0


def _split(options: argparse.Namespace) -> str | None:
    return codecs.decode(options.split, "unicode_escape") if options.split else None


def _model_and_text(options: argparse.Namespace) -> tuple[str, str]:
    words = options.words
    if len(words) > 2:
        raise ValueError(f"eval takes a model and one text file, but got {len(words)} words")
    name = words[0] if len(words) == 2 else resolve()["model"]
    text = sys.stdin.read() if words[-1] == "-" else Path(words[-1]).read_text(encoding="utf-8")
    split = _split(options)
    if options.parts:
        first, _, last = options.parts.partition(":")
        if split is None or not (first.isdigit() and last.isdigit()):
            raise ValueError("--parts A:B takes two counts, and needs --split")
        text = split.join(text.split(split)[int(first) : int(last)])
    return name, text
