"""Step 11: are the calls that the base writes well-formed, and are they the right ones?

    python -m models.tool_calls --model model.gguf --prepared PREPARED --out FILE.json

Held-out conversations with tools, each up to a turn where the data has a call; the model replies greedily, with
nothing that forces the form. A well-formed reply is one call and nothing else: `<tool_call>` JSON `</tool_call>`,
the name of an offered tool, every required argument, no argument that the tool lacks, types and allowed values as
its schema says. The data's own calls are judged too: their share is the most that a perfect pupil could reach.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.data import source_names
from models.dialogues import Asked, held_out, installed_engines, open_model, room_in
from models.documents import TOOL_CALL_START, Document, fraction_of
from models.files import write_atomically
from wattwise.model import Model

SOURCE = "tools"
CONSTRAINT = "not measured: wattwise has no constraints on the reply yet"
_CALL = re.compile(r"\s*<tool_call>\s*(\{.*\})\s*</tool_call>\s*", re.DOTALL)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A reply as a call. problem: what is wrong with its form, "" if nothing is."""

    problem: str
    name: str = ""
    arguments: dict[str, Any] | None = None


def read_call(text: str, tools: Sequence[dict[str, Any]]) -> Call:
    match = _CALL.fullmatch(text)
    if match is None:
        return Call(problem="no call" if TOOL_CALL_START not in text else "text around the call, or no end")
    try:
        call = json.loads(match[1], object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError):
        return Call(problem="not JSON, or a name twice")
    name, arguments = call.get("name"), call.get("arguments")
    if set(call) != {"name", "arguments"} or not isinstance(name, str) or not isinstance(arguments, dict):
        return Call(problem="not a name with arguments")
    offered = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    if name not in offered:
        return Call(problem="a tool that is not offered", name=name, arguments=arguments)
    return Call(problem=_wrong_arguments(arguments, offered[name]), name=name, arguments=arguments)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _wrong_arguments(arguments: dict[str, Any], parameters: dict[str, Any]) -> str:
    properties = parameters.get("properties") or {}
    if not set(parameters.get("required") or ()) <= set(arguments):
        return "a required argument is missing"
    for name, value in arguments.items():
        if name not in properties:
            return "an argument that the tool lacks"
        schema = properties[name]
        if schema.get("enum") and value not in schema["enum"]:
            return "a value that is not allowed"
        kind = schema.get("type")
        is_other = isinstance(value, bool) and kind in ("integer", "number")
        if kind in _TYPES and (is_other or not isinstance(value, _TYPES[kind])):
            return "a value of another type"
    return ""


def call_turn(document: Document) -> int | None:
    """One of the assistant's turns that are calls, chosen by the document's content."""
    turns = [
        at
        for at, turn in enumerate(document.turns)
        if at > 0 and turn.role == "assistant" and turn.content.startswith(TOOL_CALL_START)
    ]
    return turns[int(fraction_of(document.rendered()) * 1000) % len(turns)] if turns and document.tools else None


def judge(model: Model, questions: Sequence[Asked], *, reply_tokens: int) -> dict[str, object]:
    counts: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    for question in questions:
        reply = model.chat(question.messages, tools=question.tools, temperature=0, seed=0, max_tokens=reply_tokens)
        call, gold = read_call(reply.text, question.tools), read_call(question.gold, question.tools)
        counts["well_formed"] += not call.problem
        counts["right_name"] += bool(call.name) and call.name == gold.name
        counts["all_arguments"] += bool(call.name) and (call.name, call.arguments) == (gold.name, gold.arguments)
        counts["gold_well_formed"] += not gold.problem
        if call.problem:
            problems[call.problem] += 1
    shares = {
        key: round(counts[key] / max(1, len(questions)), 4)
        for key in ("well_formed", "right_name", "all_arguments", "gold_well_formed")
    }
    return {"dialogues": len(questions), **shares, "problems": dict(problems.most_common())}


def measure(path: Path, prepared: Path, *, engine: str, dialogues: int, reply_tokens: int) -> dict[str, object]:
    if SOURCE not in source_names(prepared):
        return {"skipped": f"the data has no source {SOURCE!r}"}
    with open_model(path, engine) as model:
        fits = room_in(model, reply_tokens)
        stream = held_out(prepared, SOURCE, call_turn, fits)
        questions = [question for question, _ in zip(stream, range(dialogues), strict=False)]
        if not questions:
            return {"skipped": "no held-out conversation with a call fits the context"}
        judged = judge(model, questions, reply_tokens=reply_tokens)
    return {"engine": engine, **judged, "with_constraint": CONSTRAINT}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True, help="folder with the held-out documents")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--engine", help="default: the first that is installed of llamacpp and onnx")
    parser.add_argument("--dialogues", type=int, default=200)
    parser.add_argument("--reply-tokens", type=int, default=128)
    options = parser.parse_args(arguments)
    result = measure(
        options.model,
        options.prepared,
        engine=options.engine or installed_engines()[0],
        dialogues=options.dialogues,
        reply_tokens=options.reply_tokens,
    )
    print(json.dumps(result), flush=True)
    write_atomically(options.out, json.dumps(result, indent=1).encode("utf-8"))


if __name__ == "__main__":
    main()
