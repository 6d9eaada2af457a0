"""Step 12: what the shipped base says to fixed prompts with fixed seeds; nothing chosen, nothing left out.

    python -m models.transcripts --model model.gguf --out FILE.json

Six everyday openings and three requests that a tool can serve, seeds 0 to 4 each, with the settings that
`wattwise run` has by default.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.dialogues import installed_engines, open_model
from models.files import write_atomically
from models.tool_calls import read_call
from wattwise.model import Model
from wattwise_devices.errors import ContextOverflow

OPENINGS = (
    "Hi! How are you today?",
    "What can you do?",
    "I had a long day at work.",
    "Tell me a joke.",
    "What should I cook tonight?",
    "Can you tell me a short story about a dog?",
)
REQUESTS = (
    "Find me an Italian restaurant in San Jose.",
    "What is the weather like in Seattle?",
    "How much money is in my savings account?",
)
SEEDS = range(5)


def _tool(name: str, about: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


_TEXT = {"type": "string"}
TOOLS = [
    _tool("find_restaurants", "Find a restaurant in a city", {"cuisine": _TEXT, "city": _TEXT}, ["cuisine", "city"]),
    _tool("get_weather", "Get the weather of a city", {"city": _TEXT, "date": _TEXT}, ["city"]),
    _tool(
        "check_balance",
        "Get the balance of a bank account",
        {"account_type": {"type": "string", "enum": ["checking", "savings"]}},
        ["account_type"],
    ),
]


def transcript(model: Model, prompt: str, tools: list[dict[str, Any]] | None, *, seed: int) -> dict[str, object]:
    try:
        reply = model.chat(prompt, tools=tools, seed=seed, max_tokens=256)
    except ContextOverflow as error:  # a model of a few tokens' context, made to try the recipe
        return {"prompt": prompt, "seed": seed, "reply": "", "ended": False, "problem": str(error)}
    row: dict[str, object] = {
        "prompt": prompt,
        "seed": seed,
        "reply": reply.text,
        "ended": reply.finish_reason in ("stop", "tool_calls"),
    }
    return {**row, "problem": read_call(reply.text, tools).problem} if tools else row


def transcripts(path: Path, engine: str) -> dict[str, object]:
    with open_model(path, engine) as model:
        openings = [transcript(model, prompt, None, seed=seed) for prompt in OPENINGS for seed in SEEDS]
        requests = [transcript(model, prompt, TOOLS, seed=seed) for prompt in REQUESTS for seed in SEEDS]
    return {"engine": engine, "openings": openings, "requests": requests, "tools": TOOLS}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--engine", help="default: the first that is installed of llamacpp and onnx")
    options = parser.parse_args(arguments)
    result = transcripts(options.model, options.engine or installed_engines()[0])
    write_atomically(options.out, json.dumps(result, indent=1, ensure_ascii=False).encode("utf-8"))
    for row in [*result["openings"], *result["requests"]]:  # type: ignore[misc] - plain lists of plain rows
        print(f"[{row['seed']}] {row['prompt']} -> {row['reply']}{'' if row['ended'] else ' [...]'}", flush=True)


if __name__ == "__main__":
    main()
