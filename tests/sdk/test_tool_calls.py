"""Tool calls: found in text, reported on the reply, answered in a conversation, refused in files that hold none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.chat_model import CHATML, scripted_model
from wattwise.tool_calls import checked_tools, find_tool_calls, read_tools

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (CALL, ["f"]),
        (f"Sure.\n{CALL}\n{CALL}", ["f", "f"]),
        ('<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>', ["g"]),
        ('<tool_call>{"name": "g"}</tool_call>', ["g"]),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', []),
        ('<tool_call>{"name": "g", "arguments": [1]}</tool_call>', []),
        ('<tool_call>{"name": "g", "arguments": {</tool_call>', []),
        ('<tool_call>{"name": "g", "arguments": {}}', []),
        ('{"name": "g", "arguments": {}}', []),
    ],
)
def test_only_complete_calls_are_found(text: str, names: list[str]) -> None:
    assert [call["name"] for call in find_tool_calls(text)] == names


@given(
    st.dictionaries(st.text(), st.text() | st.integers() | st.booleans() | st.lists(st.text()), max_size=4), st.text()
)
def test_any_call_written_as_json_is_found(arguments: dict, name: str) -> None:
    text = f"before <tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call> after"
    if "</tool_call>" not in json.dumps([name, arguments]):
        assert find_tool_calls(text) == [{"name": name, "arguments": arguments}]


def test_bare_functions_are_put_into_shape(tmp_path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(
        '[{"name": "f", "parameters": {"type": "object"}}, {"type": "function", "function": {"name": "g"}}]'
    )
    assert [tool["function"]["name"] for tool in read_tools(path)] == ["f", "g"]


@pytest.mark.parametrize("tools", [{}, [], "f", [1], [{}], [{"name": ""}], [{"name": "f", "parameters": []}]])
def test_what_is_no_list_of_tools_is_refused(tools: object) -> None:
    with pytest.raises(ValueError, match="here"):
        checked_tools(tools, "here")


TOOLS = [{"type": "function", "function": {"name": "f"}}]
WITH_TOOLS = "{% for tool in tools or [] %}{{ tool.function.name }}\n{% endfor %}" + CHATML


def test_a_reply_that_calls_says_so_and_the_result_is_the_next_turn() -> None:
    model = scripted_model(list(CALL.encode()), template=WITH_TOOLS)
    conversation = model.conversation(tools=TOOLS)
    reply = conversation.say("Do f.")
    assert reply.finish_reason == "tool_calls"
    assert reply.tool_calls == [{"name": "f", "arguments": {"a": 1}}]
    assert reply.to_json()["tool_calls"] == reply.tool_calls
    conversation.say_result('{"b": 2}')
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    conversation.regenerate().run()
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]


def test_without_tools_the_same_text_is_only_text() -> None:
    reply = scripted_model(list(CALL.encode())).chat("Do f.")
    assert (reply.finish_reason, reply.tool_calls) == ("stop", [])


def test_a_call_that_was_cut_short_is_no_call() -> None:
    reply = scripted_model(list(CALL.encode()), template=WITH_TOOLS).chat("Do f.", tools=TOOLS, max_tokens=20)
    assert (reply.finish_reason, reply.tool_calls) == ("length", [])
