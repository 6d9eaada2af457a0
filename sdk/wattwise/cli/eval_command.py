"""`wattwise eval [MODEL] TEXT`: perplexity and bits per byte; KL and top-1 agreement against another model, or of a KV
policy against the full cache; with --retrieval, whether the model still finds what it has read.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattwise.cli import common
from wattwise.settings import resolve

if TYPE_CHECKING:
    from wattwise.model import Model

HELP = "perplexity and bits per byte of a text; with --against or --kv POLICY, the distance from a model or full cache"


def arguments(parser: argparse.ArgumentParser) -> None:
    """[MODEL] TEXT, and how to cut the text."""
    parser.add_argument("words", nargs="+", metavar="[MODEL] TEXT", help="TEXT is a file, or '-' for standard input")
    parser.add_argument("--against", metavar="OTHER", help="a model with the same vocabulary, taken as the truth")
    parser.add_argument("--window", type=int, default=512, metavar="N", help="tokens scored at a time (default 512)")
    parser.add_argument("--split", metavar="TEXT", help="cut the text here, and score the first window of each part")
    parser.add_argument("--parts", metavar="A:B", help="with --split: only parts A to B-1, counted from 0")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="stop after so many scored tokens")
    parser.add_argument("--retrieval", type=int, default=0, metavar="N", help="also ask N questions of each kind")
    common.add_load_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Score and print."""
    import wattwise
    from wattwise.evaluation import evaluate

    name, text = _model_and_text(options)
    if options.window < 2:
        raise ValueError("a window needs at least 2 tokens")
    load = common.load_arguments(options)
    if load["context"] is None:
        load["context"] = options.window
    full = {**load, "kv_policy": None, "kv_guard": None, "kv_spill": None, "overflow": None}
    is_evicting = load["kv_policy"] is not None or load["overflow"] is not None
    other_name = options.against or (name if is_evicting else None)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(wattwise.load(name, **load))
        other = stack.enter_context(wattwise.load(other_name, **full)) if other_name else None
        found = evaluate(
            model, text, window=options.window, split=_split(options), against=other, max_tokens=options.max_tokens
        )
        answers = _ask(options, model, other, text) if options.retrieval else []
        policy = str(model.plan.eviction) if model.plan.eviction is not None else None
    truth = options.against or ("the full cache" if is_evicting else None)
    if options.json:
        common.print_json({"model": name, "against": truth, "kv": policy, **found.to_json(), "retrieval": answers})
        return 0
    print(f"{found.tokens} tokens, {found.bytes} bytes" + (f"; KV {policy}" if policy else ""))
    print(f"perplexity {found.perplexity:.4f}  ({found.nats_per_token:.5f} nats per token)")
    print(f"bits per byte {found.bits_per_byte:.4f}")
    if found.kl_nats is not None and found.same_top1 is not None:
        print(f"KL from {truth} {found.kl_nats / found.tokens:.6f} nats per token")
        print(f"same likeliest token {100 * found.same_top1 / found.tokens:.2f} %")
    for row in answers:
        beside = f", {truth} {100 * row['against']:.1f} %" if row["against"] is not None else ""
        print(
            f"{row['kind']}: {100 * row['accuracy']:.1f} % of {row['tasks']} right{beside} (guessing: {row['guess']})"
        )
    return 0


def _ask(options: argparse.Namespace, model: Model, other: Model | None, text: str) -> list[dict[str, Any]]:
    """Accuracy by kind of task, of texts that fill a window."""
    from wattwise.retrieval import CANDIDATES, KINDS, retrieval, tasks

    def measure(part: str) -> int:
        return len(model.tokenizer.encode(part))

    rows = []
    for kind in KINDS:
        made = list(tasks(kind, options.retrieval, options.window, text, measure))
        beside = retrieval(other, made, kind).accuracy if other is not None else None
        row = retrieval(model, made, kind).to_json()
        rows.append({**row, "against": beside, "guess": f"{100 / CANDIDATES:.1f} %"})
    return rows


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
