"""Every real template renders to transformers' bytes, and fails where transformers fails."""

from __future__ import annotations

import io
import tarfile
from functools import cache
from typing import Any

import pytest

from support.data import DATA, needs_data
from wattwise_devices.errors import TemplateError
from wattwise_runtimes.text.template import ChatTemplate

pytestmark = [pytest.mark.reference, needs_data]
ARCHIVES = ("llama.cpp-chat-templates.tar.gz", "chujiezheng-chat-templates.tar.gz")

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather <now> & 'later'",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "é"}, "days": {"type": "integer", "enum": [1, 2]}},
            "required": ["city"],
        },
    },
}


# What single templates ask for by their own names.
VARIABLES = {"functions": "[]", "datetime": "2026-01-02"}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def call(arguments: Any, name: str = "call_0001") -> dict[str, Any]:
    return {"type": "function", "id": name, "function": {"name": "get_weather", "arguments": arguments}}


def result(content: str, name: str = "call_0001") -> dict[str, Any]:
    return {"role": "tool", "name": "get_weather", "tool_call_id": name, "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [user("Hello <b>&\n")],
    "system": [SYSTEM, user("Hi"), assistant("Hello!"), user("  Why? ")],
    "five turns": [user("a"), assistant("b"), user("c"), assistant("d"), user("e")],
    "tool": [
        SYSTEM, user("Weather?"), assistant("", tool_calls=[call({"city": "Zürich", "days": 2})]), result('{"t": 3}'),
        assistant("It is 3."), user("thanks"),
    ],
    "tool with text arguments": [
        user("Weather?"), assistant(None, tool_calls=[call('{"city": "X"}', "abcdefghi")]), result("3", "abcdefghi"),
    ],
    "two tool calls": [
        user("?"),
        assistant("I look.", tool_calls=[call({"city": "A"}, "aaaaaaaa1"), call({"city": "B"}, "aaaaaaaa2")]),
        result("1", "aaaaaaaa1"), result("2", "aaaaaaaa2"),
    ],
    "reasoning": [
        user("q"), assistant("<think>x</think>y"), user("z"), assistant("w", reasoning_content="hm"), user("k"),
    ],
    "parts": [user([{"type": "text", "text": "part one"}, {"type": "text", "text": " two"}])],
    "wrong order": [assistant("first"), user("x"), user("y")],
    "nothing": [],
}  # fmt: skip


@cache
def templates() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ARCHIVES:
        path = DATA / "templates" / name
        if path.is_file():
            with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
                for member in archive.getmembers():
                    data = archive.extractfile(member) if member.name.endswith(".jinja") else None
                    if data is not None:
                        found[member.name.removeprefix("./")] = data.read().decode()
    return found


def test_all_templates_are_there() -> None:
    assert len(templates()) == 33 + 18


@pytest.mark.parametrize("name", sorted(templates()))
def test_renders_as_transformers_renders(name: str) -> None:
    chat = pytest.importorskip("transformers.utils.chat_template_utils")
    source = templates()[name]
    ours = ChatTemplate(source, "<s>", "</s>")
    rendered = 0
    for conversation in CONVERSATIONS.values():
        for tools in (None, [TOOL]):
            for options in (
                {"add_generation_prompt": True},
                {"add_generation_prompt": False, "enable_thinking": False},
            ):
                common = {"tools": tools, **VARIABLES, **options}
                try:
                    expected = chat.render_jinja_template(
                        [conversation], chat_template=source, bos_token="<s>", eos_token="</s>", **common
                    )[0][0]
                except Exception:
                    with pytest.raises(TemplateError):
                        ours.render(conversation, **common)
                else:
                    assert ours.render(conversation, **common) == expected
                    rendered += 1
    assert rendered >= 2
