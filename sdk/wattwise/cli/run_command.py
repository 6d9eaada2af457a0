"""`wattwise run [MODEL] PROMPT`: one reply, streamed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wattwise.cli import common
from wattwise.events import Event, GovernorEvent, in_words
from wattwise.settings import resolve
from wattwise.tool_calls import read_tools

HELP = "one reply to a prompt, streamed; the prompt may come from standard input"


def arguments(parser: argparse.ArgumentParser) -> None:
    """[MODEL] PROMPT is read by hand: one word is the prompt, unless it names a model; then the prompt is piped in."""
    parser.add_argument("words", nargs="*", metavar="[MODEL] PROMPT", help="'-' or nothing: read standard input")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of functions that the model may call")
    parser.add_argument("--raw", action="store_true", help="the prompt as it is, without a chat template")
    parser.add_argument("--stats", action="store_true", help="print a line of figures after the reply")
    parser.add_argument("--verbose", action="store_true", help="tell on stderr, as it happens, what the governor does")
    common.add_sampling_arguments(parser)
    common.add_load_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Load, stream, and report."""
    import wattwise

    if options.overflow == "summarise":
        raise ValueError("--overflow summarise sums up a conversation; for one prompt take evict or shift")
    name, prompt = _model_and_prompt(options.words)
    tools = read_tools(options.tools) if options.tools else None
    with wattwise.load(name, on_progress=common.show_progress("loading"), **common.load_arguments(options)) as model:
        messages = [{"role": "system", "content": options.system}] if options.system else []
        messages.append({"role": "user", "content": prompt})
        request = prompt if options.raw else messages
        watch = _tell if options.verbose else None
        sampling = common.sampling_arguments(options)
        with model.stream(request, raw=options.raw, tools=tools, on_event=watch, **sampling) as stream:
            for piece in stream:
                if not options.json:
                    print(piece.text, end="", flush=True)
        reply = stream.reply
        if options.json:
            common.print_json(reply.to_json())
        else:
            print()
            for line in [] if options.verbose else in_words(reply.events):
                print(f"[{line}]", file=sys.stderr)
            if options.stats:
                print(f"{reply.stats.line()}\n{reply.report}", file=sys.stderr)
    return 0


def _tell(event: Event) -> None:
    """One line as it happens; in a terminal on a line of its own, beside the text that streams."""
    begin = "\n" if sys.stdout.isatty() and sys.stderr.isatty() else ""
    when = f"{event.at_s:.1f} s: " if isinstance(event, GovernorEvent) else ""
    print(f"{begin}[{when}{event.message}]", file=sys.stderr, flush=True)


def _model_and_prompt(words: list[str]) -> tuple[str, str]:
    default = resolve()["model"]
    if len(words) > 2:
        raise ValueError(f"run takes a model and one prompt, but got {len(words)} words; put the prompt in quotes")
    if len(words) == 2:
        name, prompt = words
    elif words and _names_a_model(words[0]):
        name, prompt = words[0], "-"
    else:
        name, prompt = default, words[0] if words else "-"
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise ValueError("there is no prompt: give it as an argument or on standard input")
    return name, prompt


def _names_a_model(word: str) -> bool:
    path = Path(word)
    try:
        is_model = (path.suffix == ".gguf" and path.is_file()) or (path / "genai_config.json").is_file()
    except OSError:  # too long for a path: a prompt
        return False
    return word in ("builtin", "builtin-draft") or is_model
