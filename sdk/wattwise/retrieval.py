"""Can a model still find what it has read? Generated tasks whose answer stands in the text, scored by likelihood.

Each task is a text, a question that the text answers, and candidate answers of which one is right. The model is right
where it gives the right one the highest likelihood per byte, so weak models and models without a chat template can be
tested too; guessing is right once in `CANDIDATES` times. Names are made of random syllables: nothing but looking back
helps. Two kinds: a needle in text that has nothing to do with it (Kamradt 2023), and one of many pairs of a list (Liu
et al. 2023, https://arxiv.org/abs/2307.03172).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wattwise.evaluation import Reading
from wattwise.model import Model
from wattwise.prefix import NO_TOKENS

CANDIDATES = 8
KINDS = ("needle", "pairs")
_ANSWER_TOKENS = 12  # kept free for the longest candidate and BOS
_STARTS = (
    "b", "br", "c", "ch", "d", "dr", "f", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "tr",
    "v", "w", "z",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ee", "oa")
_ENDS = ("n", "r", "l", "s", "m", "t", "ck", "nd")
_VALUES = (
    "red", "blue", "green", "black", "white", "small", "big", "old", "new", "cold", "warm", "bread", "milk", "apple",
    "tree", "stone", "river", "garden", "window", "music", "winter", "summer", "morning", "Monday", "Friday", "April",
    "seven", "twelve", "forty", "bird", "fish", "horse",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """text, then question, then one of the candidates; `answer` is the index of the right one."""

    text: str
    question: str
    candidates: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """How many tasks of a kind were answered rightly."""

    kind: str
    tasks: int
    right: int

    @property
    def accuracy(self) -> float:
        """Share of right answers; 1 / CANDIDATES is guessing."""
        return self.right / self.tasks

    def to_json(self) -> dict[str, float | int | str]:
        """Plain data."""
        return {"kind": self.kind, "tasks": self.tasks, "right": self.right, "accuracy": self.accuracy}


def tasks(
    kind: str, count: int, tokens: int, haystack: str, measure: Callable[[str], int], *, seed: int = 0
) -> Iterator[Task]:
    """`count` tasks of at most `tokens` tokens each, question and answer included.

    haystack: text for needles to be hidden in, whole sentences. measure: tokens of a text.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no kind of task {kind!r}; there are: {', '.join(KINDS)}")
    rng = random.Random(f"{kind} {seed}")
    sentences = [s.strip() for s in haystack.replace("\n", " ").split(". ") if 20 < len(s) < 400]
    if kind == "needle" and not sentences:
        raise ValueError("the text has no sentences to hide a needle in")
    for _ in range(count):
        values = rng.sample(_VALUES, CANDIDATES)
        yield (
            _needle(rng, values, sentences, tokens, measure)
            if kind == "needle"
            else _pairs(rng, values, tokens, measure)
        )


def _needle(
    rng: random.Random, values: Sequence[str], sentences: Sequence[str], tokens: int, measure: Callable[[str], int]
) -> Task:
    name, answer = _name(rng), rng.randrange(CANDIDATES)
    needle, question = f"The secret word of {name} is {values[answer]}.", f" The secret word of {name} is"
    left = tokens - 2 * measure(f"{needle} ") - _ANSWER_TOKENS
    start, chosen = rng.randrange(len(sentences)), []
    while True:
        sentence = sentences[(start + len(chosen)) % len(sentences)] + ". "
        left -= measure(sentence)
        if left < 0:
            break
        chosen.append(sentence.strip())
    chosen.insert(rng.randrange(len(chosen) + 1), needle)
    return Task(
        text=" ".join(chosen),
        question=question,
        candidates=tuple(f" {value}" for value in values),
        answer=answer,
    )


def _pairs(rng: random.Random, values: Sequence[str], tokens: int, measure: Callable[[str], int]) -> Task:
    lines: list[tuple[str, str]] = []
    left = tokens - _ANSWER_TOKENS
    while True:
        name, value = _name(rng), values[len(lines) % CANDIDATES]
        left -= measure(f"{name}: {value}\n")
        if left < measure(f"{name}:"):
            break
        if name not in {n for n, _ in lines}:
            lines.append((name, value))
    if not lines:
        raise ValueError(f"a task of {tokens} tokens has no room for a single pair")
    rng.shuffle(lines)
    name, value = rng.choice(lines)
    return Task(
        text="\n".join(f"{n}: {v}" for n, v in lines) + "\n",
        question=f"{name}:",
        candidates=tuple(f" {v}" for v in values),
        answer=values.index(value),
    )


def _name(rng: random.Random) -> str:
    parts = (_STARTS, _VOWELS, _STARTS, _VOWELS, _ENDS)
    return "".join(rng.choice(part) for part in parts).title()


def retrieval(model: Model, made: Sequence[Task], kind: str) -> Retrieval:
    """Ask all of them. Raises ContextOverflow where a task is longer than the model can read."""
    right = sum(_choose(model, task) == task.answer for task in made)
    model.forget()
    return Retrieval(kind=kind, tasks=len(made), right=right)


def _choose(model: Model, task: Task) -> int:
    """The candidate with the highest likelihood per byte."""
    tokenizer = model.tokenizer
    wholes = [tokenizer.encode(task.text + task.question + c, bos=True) for c in task.candidates]
    shared = 0  # tokens that all of them begin with; a tokenizer may join a question's end with an answer
    while all(len(ids) > shared + 1 and ids[shared] == wholes[0][shared] for ids in wholes):
        shared += 1
    prompt = wholes[0][:shared]
    reading = Reading(model)
    for start in range(0, shared - 1, reading.piece):
        reading.read(prompt[start : min(start + reading.piece, shared - 1)])
    longest = max(len(ids) for ids in wholes) - shared
    reading.held.make_room(longest, NO_TOKENS)  # once for all: every candidate is judged from the same rows
    scores = []
    for text, whole in zip(task.candidates, wholes, strict=True):
        reading.held.rewind_to(prompt)
        answer = whole[shared:]
        logp = reading.read(whole[shared - 1 : -1])
        scores.append(float(logp[np.arange(len(answer)), answer].sum()) / len(text.encode()))
    return int(np.argmax(scores))
