"""The judge of tool calls, and the arithmetic of accepted runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models.documents import Document, tool_call

pytest.importorskip("gguf")

from models.acceptance import rounds_of
from models.tool_calls import call_turn, read_call

from support.data import DATA, needs_data

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "book",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "people": {"type": "integer"},
                    "when": {"type": "string", "enum": ["noon", "evening"]},
                    "smoking": {"type": "boolean"},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("book", {"city": "Rome", "people": 2, "when": "noon", "smoking": False}, ""),
        ("now", {}, ""),
        ("cook", {"city": "Rome"}, "a tool that is not offered"),
        ("book", {"people": 2}, "a required argument is missing"),
        ("book", {"city": "Rome", "colour": "red"}, "an argument that the tool lacks"),
        ("book", {"city": "Rome", "when": "midnight"}, "a value that is not allowed"),
        ("book", {"city": "Rome", "people": "2"}, "a value of another type"),
        ("book", {"city": "Rome", "people": True}, "a value of another type"),
    ],
)
def test_a_call_is_judged_by_its_schema(name: str, arguments: dict, problem: str) -> None:
    assert read_call(tool_call(name, arguments), TOOLS).problem == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("It is noon.", "no call"),
        ('Sure! <tool_call>{"name": "now", "arguments": {}}</tool_call>', "text around the call, or no end"),
        ('<tool_call>{"name": "now", "arguments": {}}', "text around the call, or no end"),
        ('<tool_call>{"name": "now", "arguments": {}</tool_call>', "not JSON, or a name twice"),
        ('<tool_call>{"name": "now", "arguments": {"a": 1, "a": 2}}</tool_call>', "not JSON, or a name twice"),
        ('<tool_call>{"name": "now"}</tool_call>', "not a name with arguments"),
        ('<tool_call>{"name": "now", "arguments": []}</tool_call>', "not a name with arguments"),
        ('\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n', ""),
    ],
)
def test_what_is_no_call_is_named(text: str, problem: str) -> None:
    assert read_call(text, TOOLS).problem == problem


def test_rounds_are_those_of_speculative_decoding() -> None:
    hits = [True, True, False, True, True, True, True, False]
    assert rounds_of(hits, 2) == (3, 5)  # two and the third, two and the sixth, one and the last
    assert rounds_of(hits, 8) == (2, 6)
    assert rounds_of([False, False], 4) == (2, 0)
    assert rounds_of([True] * 10, 4) == (2, 8)
    assert rounds_of([True], 4) == (1, 1)


@needs_data
@pytest.mark.data
def test_nearly_all_calls_of_the_data_are_well_formed() -> None:
    """The judge is no stricter than the data that the model learns from."""
    import itertools

    from models.tool_dialogues import read_tool_dialogues

    path = Path(DATA) / "train" / "sgd_train.jsonl.xz"
    documents: list[Document] = list(itertools.islice(read_tool_dialogues(path), 150))
    problems = []
    for document in documents:
        turn = call_turn(document)
        if turn is not None:
            problems.append(read_call(document.turns[turn].content, document.tools).problem)
    assert len(problems) > 100
    wrong = [problem for problem in problems if problem]
    assert len(wrong) <= 0.03 * len(problems), json.dumps(wrong)
