"""Schema-Guided Dialogue as conversations with tools: the services' intents become functions, the system calls
them, reads what they return, and answers.

The corpus writes every value as text; here counts become integers and True/False booleans, as an application
would declare them. Its dialogues all take place on 1 March 2019, which the system prompt says, because the calls
hold dates made from "tomorrow". Function names are respelled in some of the dialogues (find_restaurants,
findRestaurants), so that a model learns to take the name from the list and not from memory.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.documents import Document, Turn, describe_tools, fraction_of, tool_call
from models.tidy import is_coarse, tidy_turn

SCHEMA_FILE = "sgd_schema.json.xz"
TODAY = "Today is 2019-03-01."
MOST_CHARS = 2400  # about 700 tokens: what a document may hold before the rest of its dialogue is left out
MOST_TOOLS_CHARS = 1200
_RESULT_FIELDS = 5
_SPELLINGS = ("as it is", "as it is", "snake", "camel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    name: str
    intents: tuple[dict[str, Any], ...]
    slots: dict[str, dict[str, Any]]


def read_services(path: Path) -> dict[str, Service]:
    with lzma.open(path, "rt", encoding="utf-8") as stream:
        rows = json.load(stream)
    return {
        row["service_name"]: Service(
            name=row["service_name"],
            intents=tuple(row["intents"]),
            slots={slot["name"]: slot for slot in row["slots"]},
        )
        for row in rows
    }


def _schema_of(slot: dict[str, Any]) -> dict[str, Any]:
    values = slot["possible_values"] if slot["is_categorical"] else []
    if values and set(values) <= {"True", "False"}:
        return {"type": "boolean"}
    if values and all(value.isdigit() for value in values):
        return {"type": "integer"}
    return {"type": "string", "enum": values} if 1 < len(values) <= 6 else {"type": "string"}


def _typed(value: str, schema: dict[str, Any]) -> Any:
    if schema["type"] == "boolean" and value in ("True", "False"):
        return value == "True"
    if schema["type"] == "integer" and value.isdigit():
        return int(value)
    return value


def respell(name: str, spelling: str) -> str:
    """FindRestaurants as find_restaurants ("snake") or findRestaurants ("camel")."""
    if spelling == "snake":
        return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    return name[0].lower() + name[1:] if spelling == "camel" else name


def function_of(service: Service, intent: dict[str, Any], spelling: str) -> dict[str, Any]:
    """An intent as a tool in OpenAI's shape."""
    required = list(intent["required_slots"])
    optional = [name for name in intent["optional_slots"] if name not in required]
    properties = {name: _schema_of(service.slots[name]) for name in [*required, *optional]}
    return {
        "type": "function",
        "function": {
            "name": respell(intent["name"], spelling),
            "description": intent["description"],
            "parameters": {"type": "object", "properties": properties, "required": required},
        },
    }


def _tools_for(row: dict[str, Any], services: dict[str, Service], spelling: str) -> list[dict[str, Any]]:
    """The intents of the dialogue's services, and in half of the dialogues those of one it has no use for."""
    names = [name for name in row["services"] if name in services]
    draw = fraction_of("distractor" + row["id"])
    if draw < 0.5:
        others = sorted(name for name in services if name.split("_")[0] not in {used.split("_")[0] for used in names})
        names.insert(int(draw * 4) % 2, others[int(draw * 2 * len(others))])
    tools: list[dict[str, Any]] = []
    seen: set[str] = set()
    for name in names:
        for intent in services[name].intents:
            if intent["name"] not in seen:
                seen.add(intent["name"])
                tools.append(function_of(services[name], intent, spelling))
    return tools


def _result_text(result: list[dict[str, str]], arguments: dict[str, Any], reply: str) -> str:
    """The first thing found, with the fields that the reply speaks of first: a model can only copy what it sees."""
    if not result:
        return "[]"
    fields = {name: value for name, value in result[0].items() if name not in arguments}
    spoken = sorted(fields, key=lambda name: (str(fields[name]).lower() not in reply.lower(), name))
    return json.dumps({name: fields[name] for name in spoken[:_RESULT_FIELDS]}, ensure_ascii=False)


def _turns_of(row: dict[str, Any], tools: list[dict[str, Any]], spelling: str) -> list[Turn] | None:
    """None if a call names a function or an argument that its service does not declare."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"]["properties"] for tool in tools}
    turns: list[Turn] = []
    for said in row["turns"]:
        text = tidy_turn(said["t"])
        if not text or is_coarse(text):
            return None
        if said["s"] == "U":
            turns.append(Turn(role="user", content=text))
            continue
        if "call" in said:
            name = respell(said["call"]["name"], spelling)
            given = said["call"]["arguments"]
            if name not in schemas or not set(given) <= set(schemas[name]):
                return None
            # "dontcare" is the corpus's mark for "any": a caller leaves such an argument out.
            arguments = {
                key: _typed(value, schemas[name][key])
                for key, value in sorted(given.items(), key=lambda item: list(schemas[name]).index(item[0]))
                if value != "dontcare"
            }
            turns.append(Turn(role="assistant", content=tool_call(name, arguments)))
            turns.append(Turn(role="tool", content=_result_text(said.get("result") or [], given, text)))
        turns.append(Turn(role="assistant", content=text))
    return turns


def _merged_request(turns: list[Turn]) -> list[Turn]:
    """The questions before the first call taken out: the user says everything in one message."""
    said: list[str] = []
    for index, turn in enumerate(turns):
        if turn.content.startswith("<tool_call>"):
            return [Turn(role="user", content=" ".join(said)), *turns[index:]]
        if turn.role == "user":
            said.append(turn.content)
    return turns


def _fitting(turns: list[Turn], room_chars: int) -> list[Turn]:
    """The beginning of a dialogue that ends with the assistant and fits."""
    kept, size = 0, 0
    for index, turn in enumerate(turns):
        size += len(turn.content) + 24
        if size > room_chars:
            break
        if turn.role == "assistant":
            kept = index + 1
    return turns[:kept]


def read_tool_dialogues(path: Path) -> Iterator[Document]:
    """`path`: the dialogues; their schemas lie beside it."""
    services = read_services(path.with_name(SCHEMA_FILE))
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            spelling = _SPELLINGS[int(fraction_of("spelling" + row["id"]) * len(_SPELLINGS))]
            tools = _tools_for(row, services, spelling)
            listed = describe_tools(tools)
            turns = _turns_of(row, tools, spelling)
            if turns is None or len(listed) > MOST_TOOLS_CHARS:
                continue
            if fraction_of("merged" + row["id"]) < 0.4:
                turns = _merged_request(turns)
            turns = _fitting(turns, MOST_CHARS - len(listed))
            if len(turns) >= 2:
                yield Document(turns=(Turn(role="system", content=TODAY), *turns), tools=tuple(tools))
