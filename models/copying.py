"""Conversations whose answers stand in the conversation: repeating, looking up, calling tools never seen before.

A small model learns names by heart long before it learns to look back for them, and text alone gives it little
reason to. Here names are made of random syllables and lists of tools are made up, so nothing but looking back
helps. It is what makes a call carry the city that was asked for.
"""

from __future__ import annotations

import random

from models.documents import Document, Turn, conversation, tool_call

_STARTS = [
    "b",
    "bl",
    "br",
    "c",
    "ch",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "r",
    "s",
    "sh",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_MIDDLES = ["a", "e", "i", "o", "u", "ai", "ee", "oa", "ou"]
_ENDS = ["", "", "n", "r", "l", "s", "m", "t", "ck", "nd"]
_COMMON = [
    "red",
    "blue",
    "green",
    "small",
    "big",
    "old",
    "new",
    "cold",
    "warm",
    "quick",
    "round",
    "quiet",
    "house",
    "river",
    "garden",
    "window",
    "bread",
    "letter",
    "music",
    "stone",
    "tree",
    "road",
    "winter",
    "morning",
    "friend",
    "teacher",
    "boat",
    "bird",
    "lamp",
    "chair",
    "walk",
    "sing",
    "open",
    "carry",
    "find",
    "build",
    "paint",
    "write",
    "seven",
    "twelve",
    "forty",
    "ninety",
    "Monday",
    "Friday",
    "April",
    "August",
    "left",
    "right",
]
_RELATIONS = ("color", "price", "size", "age", "owner", "number", "city", "size", "friend", "day")
_VERBS = [
    "get",
    "set",
    "find",
    "book",
    "check",
    "open",
    "close",
    "start",
    "stop",
    "send",
    "list",
    "order",
    "add",
    "show",
    "play",
    "make",
]
_NOUNS = [
    "ticket",
    "room",
    "lamp",
    "file",
    "song",
    "price",
    "note",
    "order",
    "door",
    "train",
    "table",
    "parcel",
    "garden",
    "report",
    "photo",
    "score",
    "heater",
    "taxi",
    "book",
    "meeting",
    "city",
    "invoice",
    "recipe",
    "route",
    "ship",
    "camera",
    "course",
    "doctor",
    "hotel",
    "event",
]
_ARGUMENTS = [
    "name",
    "city",
    "date",
    "place",
    "title",
    "person",
    "color",
    "time",
    "topic",
    "code",
    "street",
    "item",
    "team",
    "day",
]


def pseudo_word(rng: random.Random) -> str:
    """Two or three syllables that mean nothing."""
    return "".join(
        rng.choice(_STARTS) + rng.choice(_MIDDLES) + rng.choice(_ENDS) for _ in range(rng.choice((1, 2, 2, 3)))
    )


def _name(rng: random.Random) -> str:
    return pseudo_word(rng).capitalize()


def _value(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.25:
        return str(rng.randint(2, 9999))
    if draw < 0.5:
        return rng.choice(_COMMON)
    return _name(rng) if draw < 0.8 else f"{_name(rng)} {_name(rng)}"


def _repeat(rng: random.Random) -> list[str]:
    words = [rng.choice(_COMMON) if rng.random() < 0.6 else pseudo_word(rng) for _ in range(rng.randint(2, 14))]
    text = " ".join(words)
    asked = rng.choice(("Repeat after me: {}", "Say this: {}", "Repeat: {}", "Please repeat this text: {}"))
    return [asked.format(text), text]


def _look_up(rng: random.Random) -> list[str]:
    relation = rng.choice(_RELATIONS)
    facts = {_name(rng): _value(rng) for _ in range(rng.randint(1, 5))}
    told = " ".join(f"The {relation} of {name} is {value}." for name, value in facts.items())
    name = rng.choice(list(facts))
    return [f"{told} What is the {relation} of {name}?", f"The {relation} of {name} is {facts[name]}."]


def _own_name(rng: random.Random) -> list[str]:
    name = _name(rng)
    asked = rng.choice(("My name is {}.", "I am {}.", "Call me {}.", "Hi, I am {}.", "Hello! My name is {}."))
    greeting = rng.choice(
        ("Hello {}! How are you?", "Nice to meet you, {}.", "Hi {}! What would you like to talk about?")
    )
    again = rng.choice(("What is my name?", "Do you know my name?", "Who am I?"))
    answer = rng.choice(("Your name is {}.", "You are {}."))
    return [asked.format(name), greeting.format(name), again, answer.format(name)]


def _tool(rng: random.Random) -> tuple[str, str, list[str]]:
    """Its name, what it does, its arguments."""
    verb, noun = rng.choice(_VERBS), rng.choice(_NOUNS) if rng.random() < 0.7 else pseudo_word(rng)
    arguments = rng.sample(_ARGUMENTS, rng.choice((1, 1, 2, 2, 3)))
    spelt = rng.choice((f"{verb}_{noun}", f"{verb}_{noun}", f"{verb}{noun.capitalize()}"))
    name = spelt if rng.random() < 0.8 else verb.capitalize() + noun.capitalize()
    return name, f"{verb.capitalize()} a {noun}", arguments


def _called(rng: random.Random) -> Document:
    tools = {tool[0]: tool for tool in (_tool(rng) for _ in range(rng.choice((1, 2, 2, 3, 4))))}
    turns: list[Turn] = []
    for _ in range(rng.choice((1, 1, 2))):
        name, about, arguments = rng.choice(list(tools.values()))
        values = {argument: _value(rng) for argument in arguments}
        given = rng.choice((" with {}", ", {}", " for {}")).format(
            " and ".join(f"{argument} {value}" for argument, value in values.items())
        )
        asked = rng.choice(("{}{}.", "Please {}{}.", "Can you {}{}?", "I want to {}{}."))
        start = about if asked.startswith("{}") else about[0].lower() + about[1:]
        turns += [
            Turn(role="user", content=asked.format(start, given)),
            Turn(role="assistant", content=tool_call(name, values)),
            Turn(role="tool", content='{"status": "ok"}'),
            Turn(role="assistant", content=f"Done: {about[0].lower() + about[1:]}, {', '.join(values.values())}."),
        ]
    schemas = tuple(
        {
            "type": "function",
            "function": {
                "name": name,
                "description": about,
                "parameters": {
                    "type": "object",
                    "properties": {argument: {"type": "string"} for argument in arguments},
                    "required": arguments,
                },
            },
        }
        for name, about, arguments in tools.values()
    )
    return Document(turns=tuple(turns), tools=schemas)


def copying(count: int, *, seed: int) -> list[Document]:
    """`count` short conversations, two fifths of them with tools."""
    rng = random.Random(seed)
    documents = []
    for _ in range(count):
        if rng.random() < 0.4:
            documents.append(_called(rng))
            continue
        turns: list[str] = []
        for _ in range(rng.choice((1, 2, 3))):
            turns += rng.choice((_repeat, _repeat, _look_up, _own_name))(rng)
        documents.append(conversation(turns))
    return documents
