"""Readers of questions with one right answer: trivia, school problems, and command-line help as questions."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path

from models.documents import Document, conversation, fraction_of
from models.tidy import is_coarse, tidy_turn


def _rows(path: Path) -> Iterator[dict]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def read_trivia(path: Path) -> Iterator[Document]:
    """OpenTriviaQA: in half of the documents the choices are told, in the others the answer must be known."""
    for row in _rows(path):
        question, answer = tidy_turn(row["q"]), " ".join(str(row["a"]).split())
        choices = [" ".join(str(choice).split()) for choice in row["choices"]]
        if not question or not answer.isascii() or is_coarse(question + answer) or len(question) > 240:
            continue
        if choices and (fraction_of(question) < 0.5 or "of these" in question or "following" in question):
            if not all(choice.isascii() for choice in choices):
                continue
            question = f"{question} {', '.join(choices[:-1])} or {choices[-1]}?"
        yield conversation([question, answer if answer[-1] in ".!?" else answer + "."])


def read_school_problems(path: Path) -> Iterator[Document]:
    """GSM8K: the steps without the calculator marks, the result as a sentence."""
    for row in _rows(path):
        steps, _, result = row["answer"].partition("####")
        steps = re.sub(r"<<[^>]*>>", "", steps).strip()
        text = f"{steps}\nThe answer is {result.strip()}."
        if (row["question"] + text).isascii():
            yield conversation([row["question"].strip(), text])


_ASKED = ("How do I {} with {}?", "Which {1} command is for this: {0}?", "How can I {} using {}?")


def read_command_help(path: Path) -> Iterator[Document]:
    """tldr pages: each example as a question about the task, answered with the command."""
    for row in _rows(path):
        for task, command in re.findall(r"^- (.+):\n\n`(.+)`$", row["md"], re.MULTILINE):
            command = re.sub(r"\{\{(?:\[([^|\]]*)\|[^\]]*\]|([^}]*))\}\}", lambda m: m[1] or m[2], command)
            task = re.sub(r"[`\[\]]", "", task)
            if not (task + command).isascii():
                continue
            asked = _ASKED[int(fraction_of(task) * len(_ASKED))]
            yield conversation([asked.format(task[0].lower() + task[1:], row["page"]), f"`{command}`"])
