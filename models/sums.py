"""Small sums in words and figures, made by this recipe: what a model of this size can learn of arithmetic."""

from __future__ import annotations

import random

from models.documents import Document, conversation


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PEOPLE = ("Anna", "Ben", "Maria", "Tom", "Lucy", "Sam", "Emma", "Paul", "Nina", "Leo")
_THINGS = ("apples", "books", "coins", "eggs", "pens", "shells", "stamps", "marbles", "cookies", "balloons")
_WORDS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_SIGNS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def _numbers(rng: random.Random) -> tuple[int, str, int, int]:
    """a, sign, b, and the whole-numbered result; sums that appear in daily life are the most frequent."""
    sign = rng.choice("++--**/")
    if sign == "+":
        top = rng.choice((10, 10, 20, 100))
        a, b = rng.randint(0, top), rng.randint(0, top)
        return a, sign, b, a + b
    if sign == "-":
        top = rng.choice((10, 10, 20, 100))
        a = rng.randint(0, top)
        b = rng.randint(0, a)
        return a, sign, b, a - b
    a, b = rng.randint(0, 10), rng.randint(1, 10)
    if sign == "*":
        return a, sign, b, a * b
    return a * b, sign, b, a


def _said(number: int, in_words: bool) -> str:
    return _WORDS[number] if in_words and number < len(_WORDS) else str(number)


def _plain(rng: random.Random) -> list[str]:
    a, sign, b, result = _numbers(rng)
    in_words = rng.random() < 0.25
    spoken = f"{_said(a, in_words)} {_SIGNS[sign]} {_said(b, in_words)}"
    written = spoken if in_words or rng.random() < 0.3 else f"{a} {sign} {b}"
    if rng.random() < 0.1 and not in_words:
        written = written.replace(" ", "")
    question = rng.choice(
        ("What is {}?", "How much is {}?", "Can you tell me what {} is?", "{} = ?", "Calculate {}.", "what's {}", "{}?")
    ).format(written)
    reply = rng.choice(("{} is {}.", "{} is {}.", "{} makes {}.")).format(
        f"{a} {sign} {b}" if not in_words else spoken, _said(result, in_words)
    )
    return [question[0].upper() + question[1:], reply[0].upper() + reply[1:]]


def _story(rng: random.Random) -> list[str]:
    who, other = rng.sample(_PEOPLE, 2)
    thing = rng.choice(_THINGS)
    if rng.random() < 0.5:
        a, b = rng.randint(1, 20), rng.randint(1, 20)
        question = rng.choice(
            (
                "{who} has {a} {thing}. {other} gives {who} {b} more. How many {thing} does {who} have now?",
                "{who} has {a} {thing} and {other} has {b}. How many {thing} do they have together?",
            )
        )
        reply, sign, result = "{a} + {b} = {result}, so it is {result} {thing}.", "+", a + b
    else:
        a = rng.randint(2, 20)
        b = rng.randint(1, a)
        question = rng.choice(
            (
                "{who} has {a} {thing} and gives {b} of them to {other}. How many are left?",
                "There were {a} {thing}. {who} took {b}. How many are left?",
            )
        )
        reply, sign, result = "{a} - {b} = {result}, so {result} {thing} are left.", "-", a - b
    values = {"who": who, "other": other, "thing": thing, "a": a, "b": b, "sign": sign, "result": result}
    return [question.format(**values), reply.format(**values)]


def sums(count: int, *, seed: int) -> list[Document]:
    """`count` conversations of one to three sums."""
    rng = random.Random(seed)
    documents = []
    for _ in range(count):
        turns: list[str] = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            turns += _story(rng) if rng.random() < 0.2 else _plain(rng)
        documents.append(conversation(turns))
    return documents
