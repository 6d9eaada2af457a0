"""Conversations with tools: what a model learns is what the shipped template sends, and the calls are right."""

from __future__ import annotations

import json
import lzma
import re

import pytest
from models.copying import copying
from models.documents import CHAT_TEMPLATE, Document, Turn, describe_tools, tool_call
from models.question_sources import read_command_help, read_school_problems, read_trivia
from models.sums import sums
from models.tool_dialogues import TODAY, function_of, read_services, read_tool_dialogues, respell
from models.tool_requests import TOOLS, tool_requests

from support.data import DATA, needs_data
from wattwise_runtimes.text.template import ChatTemplate

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


def rendered(messages: list[dict], tools: list[dict] | None = None) -> str:
    return ChatTemplate(CHAT_TEMPLATE, None, None).render(messages, tools=tools, add_generation_prompt=False)


def test_tools_are_listed_in_one_line_each() -> None:
    assert describe_tools([WEATHER, NOW]) == (
        "# Tools\n- get_weather(city, days?: integer, unit?: C|F): Weather in a city\n- now()"
    )


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_the_shipped_template_writes_tools_as_training_does(system: str) -> None:
    call = {"function": {"name": "get_weather", "arguments": {"city": "São Paulo", "days": 2}}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": '{"sky": "clear"}'},
        {"role": "assistant", "content": "It is clear."},
    ]
    turns = (
        Turn(role="user", content="Weather?"),
        Turn(role="assistant", content=tool_call("get_weather", {"city": "São Paulo", "days": 2})),
        Turn(role="tool", content='{"sky": "clear"}'),
        Turn(role="assistant", content="It is clear."),
    )
    if system:
        messages.insert(0, {"role": "system", "content": system})
        turns = (Turn(role="system", content=system), *turns)
    document = Document(turns=turns, tools=(WEATHER, NOW))
    assert rendered(messages, [WEATHER, NOW]) == document.rendered()
    assert Document.from_json(json.loads(json.dumps(document.to_json()))) == document
    # Arguments that an application kept as text are passed through as they are.
    call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    assert rendered(messages, [WEATHER, NOW]) == document.rendered()


def check_calls(document: Document, *, complete: bool = False) -> int:
    """The number of calls. Each names an offered function, with known arguments of the declared types."""
    functions = {tool["function"]["name"]: tool["function"]["parameters"] for tool in document.tools}
    calls = 0
    for turn in document.turns:
        match = re.fullmatch(r"<tool_call>(.*)</tool_call>", turn.content)
        if turn.role != "assistant" or match is None:
            continue
        calls += 1
        call = json.loads(match[1])
        schema = functions[call["name"]]
        assert set(call["arguments"]) <= set(schema["properties"])
        # The corpus leaves a required argument out where the user does not care about it.
        assert not complete or set(schema["required"]) <= set(call["arguments"])
        kinds = {"string": str, "integer": int, "boolean": bool}
        for name, value in call["arguments"].items():
            kind = kinds[schema["properties"][name]["type"]]
            assert type(value) is kind or isinstance(value, str)
    return calls


def test_made_requests_call_what_is_offered_and_only_that() -> None:
    documents = tool_requests(600, seed=1)
    assert [one.to_json() for one in documents] == [one.to_json() for one in tool_requests(600, seed=1)]
    assert sum(check_calls(document, complete=True) for document in documents) > 500
    for document in documents:
        assert "{" not in "".join(turn.content for turn in document.turns if turn.role == "user")
    plain = [one for one in documents if not any(turn.role == "tool" for turn in one.turns)]
    assert plain, "some requests must be answered without a call"
    names = {tool["function"]["name"] for document in documents for tool in document.tools}
    assert {tool.name for tool in TOOLS} < names
    assert len(names) > 10 * len(TOOLS), "a name that is always the same would be learnt by heart"


def test_sums_are_right() -> None:
    checked = 0
    for document in sums(2000, seed=3):
        for turn in document.turns:
            match = re.match(r"(\d+) ([-+*/]) (\d+) (?:is|makes|=) (\d+)", turn.content)
            if turn.role == "assistant" and match:
                a, sign, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
                assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign] == result
                checked += 1
    assert checked > 1000


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("as it is", "FindBus"), ("snake", "find_bus"), ("camel", "findBus")],
)
def test_respelled_names(spelling: str, name: str) -> None:
    assert respell("FindBus", spelling) == name


def write_lines(path, rows) -> None:
    with lzma.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_dialogue_becomes_calls_results_and_answers(tmp_path) -> None:
    service = {
        "service_name": "Taxi_1",
        "slots": [
            {"name": "to", "is_categorical": False, "possible_values": []},
            {"name": "riders", "is_categorical": True, "possible_values": ["1", "2"]},
            {"name": "shared", "is_categorical": True, "possible_values": ["True", "False"]},
        ],
        "intents": [
            {
                "name": "GetRide",
                "description": "Call a taxi",
                "required_slots": ["to"],
                "optional_slots": {"riders": "1", "shared": "dontcare"},
            }
        ],
    }
    with lzma.open(tmp_path / "sgd_schema.json.xz", "wt", encoding="utf-8") as stream:
        json.dump([service, {**service, "service_name": "Other_1"}], stream)
    turns = [
        {"s": "U", "t": "i need a taxi"},
        {"s": "S", "t": "Where to?"},
        {"s": "U", "t": "The harbor, for two."},
        {
            "s": "S",
            "t": "It costs 12 dollars.",
            "call": {"name": "GetRide", "arguments": {"to": "Harbor", "riders": "2", "shared": "dontcare"}},
            "result": [{"to": "Harbor", "fare": "12"}],
        },
    ]
    unknown = [turns[0], {**turns[3], "call": {"name": "Fly", "arguments": {}}}]
    rows = [{"id": f"{number}", "services": ["Taxi_1"], "turns": turns} for number in range(20)]
    rows.append({"id": "bad", "services": ["Taxi_1"], "turns": unknown})
    write_lines(tmp_path / "dialogues.jsonl.xz", rows)
    documents = list(read_tool_dialogues(tmp_path / "dialogues.jsonl.xz"))
    assert len(documents) == 20
    merged = [one for one in documents if one.turns[1].content == "I need a taxi. The harbor, for two."]
    assert 0 < len(merged) < 20
    for document in documents:
        assert document.turns[0] == Turn(role="system", content=TODAY)
        assert check_calls(document) == 1
        call, result, answer = document.turns[-3:]
        assert json.loads(call.content[11:-12])["arguments"] == {"to": "Harbor", "riders": 2}
        assert (result.role, json.loads(result.content)) == ("tool", {"fare": "12"})
        assert answer.content == "It costs 12 dollars."
    tool = function_of(read_services(tmp_path / "sgd_schema.json.xz")["Taxi_1"], service["intents"][0], "as it is")
    assert describe_tools([tool]) == "# Tools\n- GetRide(to, riders?: integer, shared?: boolean): Call a taxi"


def test_questions_with_one_answer(tmp_path) -> None:
    write_lines(tmp_path / "a.xz", [{"q": "Which of these is a fish?", "a": "Carp", "choices": ["Carp", "Cat", "Cow"]}])
    (document,) = read_trivia(tmp_path / "a.xz")
    assert [turn.content for turn in document.turns] == ["Which of these is a fish? Carp, Cat or Cow?", "Carp."]
    write_lines(tmp_path / "b.xz", [{"question": "2 and 3?", "answer": "It is 2+3=<<2+3=5>>5.\n#### 5"}])
    (document,) = read_school_problems(tmp_path / "b.xz")
    assert document.turns[1].content == "It is 2+3=5.\nThe answer is 5."
    page = "# ls\n\n> List.\n\n- List all files:\n\n`ls {{[-a|--all]}} {{path/to}}`\n"
    write_lines(tmp_path / "c.xz", [{"page": "ls", "md": page}])
    (document,) = read_command_help(tmp_path / "c.xz")
    assert "list all files" in document.turns[0].content and document.turns[1].content == "`ls -a path/to`"


@needs_data
def test_the_real_dialogues_are_read() -> None:
    documents = []
    for document in read_tool_dialogues(DATA / "train" / "sgd_train.jsonl.xz"):
        documents.append(document)
        if len(documents) == 300:
            break
    assert sum(check_calls(document) for document in documents) > 300
    assert max(len(document.rendered()) for document in documents) < 4500


def test_what_is_to_be_copied_stands_before_its_copy() -> None:
    documents = copying(400, seed=2)
    assert [one.to_json() for one in documents] == [one.to_json() for one in copying(400, seed=2)]
    assert sum(check_calls(document, complete=True) for document in documents) > 150
    for document in documents:
        asked = ""
        for turn in document.turns:
            if turn.role == "user":
                asked = turn.content
            elif turn.content.startswith("<tool_call>"):
                for value in json.loads(turn.content[11:-12])["arguments"].values():
                    assert value in asked
            elif asked.startswith(("Repeat", "Say", "Please repeat")) and not document.tools:
                assert asked.endswith(turn.content)
