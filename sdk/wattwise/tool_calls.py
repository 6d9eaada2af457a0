"""Tool calls in a reply's text: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

The form of Hermes, Qwen and the built-in models. Only complete and well-formed calls are reported; the text stays as
the model wrote it, so that a conversation renders to the same tokens again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
MOST_TOOLS_BYTES = 1 << 20


def find_tool_calls(text: str) -> list[dict[str, Any]]:
    """The calls in order, each {"name": str, "arguments": dict}; what has another shape is left out."""
    calls = []
    for match in _CALL.finditer(text):
        try:
            call = json.loads(match[1])
        except (ValueError, RecursionError):
            continue
        arguments = call.get("arguments", {})
        if isinstance(call.get("name"), str) and isinstance(arguments, dict):
            calls.append({"name": call["name"], "arguments": arguments})
    return calls


def read_tools(path: Path) -> list[dict[str, Any]]:
    """Tools from a JSON file: a list in OpenAI's shape, or one of bare functions with a name.

    Raises ValueError that says which entry is wrong.
    """
    from wattwise_runtimes.formats.json_file import read_json

    if path.stat().st_size > MOST_TOOLS_BYTES:
        raise ValueError(f"{path} holds {path.stat().st_size} bytes; a list of tools has at most {MOST_TOOLS_BYTES}")
    tools = read_json(path)
    return checked_tools(tools, str(path))


def checked_tools(tools: object, where: str) -> list[dict[str, Any]]:
    """The tools as a list in OpenAI's shape, or ValueError."""
    if not isinstance(tools, Sequence) or isinstance(tools, str) or not tools:
        raise ValueError(f"{where} is not a list of tools")
    checked = []
    for number, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError(f"{where}: tool {number} has no function with a name")
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise ValueError(f"{where}: the parameters of {function['name']} are not a JSON schema object")
        checked.append({"type": "function", "function": dict(function)})
    return checked
