"""Everyday conversations from lines written for this recipe: the reader of `models/talk/*.txt` and the generator.

A file holds blocks of dialogue. A block is `[kind]` (or `[kind*weight]`) and lines `U:` and `A:` in turn, each with
alternatives divided by ` | `; every answer of a line fits every alternative of the line before it. `{pet}` is a draw
from `@slot pet = dog | cat`, `{capital.0}` a column of a row drawn from `@table capital = France, Paris | ...`; both
are drawn once per block, `{pet#2}` is a second draw that differs from the first. A definition is seen by all files;
a file's own come first, then those of `slots.txt`. Lines that begin with `#` are comments.

Conversations are combined at random from these blocks, so figures measured on held-out ones are not independent of
the training part.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from models.documents import Document, conversation

TALK_FOLDER = Path(__file__).parent / "talk"
SHARED_FILE = "slots.txt"
KINDS = ("opening", "topic", "question", "task", "about", "closing")
MIDDLE_SHARES = {"topic": 4.0, "question": 3.0, "task": 1.8, "about": 1.2}
OPENING_SHARE, CLOSING_SHARE, SYSTEM_SHARE = 0.55, 0.3, 0.25
MIDDLES = (1, 1, 2, 2, 3)  # how many middle blocks, each as likely
MAX_EXCHANGES = 4

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are Wattwise, a small and friendly language model.",
    "You are a friendly chat partner. Answer in one or two sentences.",
    "Be brief.",
    "Keep your answers short.",
]

_HEADER = re.compile(r"\[([a-z]+)(?:\*([0-9]+(?:\.[0-9]+)?))?\]")
_DEFINITION = re.compile(r"@(slot|table) ([a-z][a-z0-9_]*) *= *(.+)")
_HOLE = re.compile(r"\{([a-z][a-z0-9_]*)(?:#([1-9]))?(?:\.([0-9]))?\}")
_VOWEL_SOUND = re.compile(r"(?!uni|use|usu|eu|one\b|once\b)[aeiou]|hour|honest", re.IGNORECASE)

_QUESTION_WORDS = (
    "what|what's|who|where|when|why|how|which|can|could|do|does|is|are|will|would|should|did|have|has|was|were"
)
_REQUEST_WORDS = "tell|give|write|say|make|explain|help|name|list|show|spell|count|translate|finish|describe|recommend"
_MAY_FOLLOW_SO = re.compile(rf"(?:{_QUESTION_WORDS}) ", re.IGNORECASE)
_MAY_FOLLOW_PLEASE = re.compile(rf"(?:{_REQUEST_WORDS}) ", re.IGNORECASE)


Rows = tuple[tuple[str, ...], ...]  # what holes are filled from; a slot has rows of one column


class TalkError(ValueError):
    """A talk file breaks the format; the message names the file, the line and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`lines` alternate between user and assistant, the user first; each is its alternatives."""

    kind: str
    weight: float
    lines: tuple[tuple[str, ...], ...]
    tables: dict[str, Rows]  # of the names that stand in its holes
    where: str  # "file:line" of its header


# ---------------------------------------------------------------- reading


@dataclass(slots=True)
class _Draft:
    """A block that is being read."""

    kind: str
    weight: float
    where: str
    lines: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, speaker: str, text: str, where: str) -> None:
        expected = "UA"[len(self.lines) % 2]
        if speaker != expected:
            raise TalkError(f"{where}: {speaker}: follows {speaker}:; a block alternates U: and A:, starting with U:")
        self.lines.append(_alternatives(text, where))

    def done(self) -> Block:
        if not self.lines or len(self.lines) % 2:
            raise TalkError(f"{self.where}: the block has {len(self.lines)} lines; it must end with an A: line")
        if len(self.lines) > 2 * MAX_EXCHANGES:
            raise TalkError(
                f"{self.where}: the block has {len(self.lines) // 2} exchanges, at most {MAX_EXCHANGES} fit"
            )
        return Block(kind=self.kind, weight=self.weight, lines=tuple(self.lines), tables={}, where=self.where)


def _alternatives(text: str, where: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split("|"))
    if not all(parts):
        raise TalkError(f"{where}: an alternative is empty; ` | ` stands between two texts only")
    if len(set(parts)) != len(parts):
        twice = next(part for part in parts if parts.count(part) > 1)
        raise TalkError(f"{where}: {twice!r} stands there twice; write every alternative once")
    return parts


def _read_definition(line: str, where: str, tables: dict[str, Rows]) -> None:
    match = _DEFINITION.fullmatch(line)
    if match is None:
        raise TalkError(
            f"{where}: {line[:40]!r} is no definition; write `@slot name = a | b` or `@table name = a, b | ...`"
        )
    what, name, text = match.groups()
    if name in tables:
        raise TalkError(f"{where}: {name!r} is defined twice; slots and tables share their names")
    parts = _alternatives(text, where)
    rows = tuple((part,) if what == "slot" else tuple(cell.strip() for cell in part.split(",")) for part in parts)
    uneven = next((row for row in rows if len(row) != len(rows[0]) or not all(row)), None)
    if uneven is not None:
        raise TalkError(f"{where}: row {', '.join(uneven)!r} has not {len(rows[0])} filled columns like the first row")
    tables[name] = rows


def _read_file(path: Path, tables: dict[str, Rows]) -> list[Block]:
    blocks: list[Block] = []
    draft: _Draft | None = None
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line, where = raw.strip(), f"{path.name}:{number}"
        if not line.isascii():
            strange = next(character for character in line if not character.isascii())
            raise TalkError(f"{where}: {strange!r} is not ASCII; the tokenizer is trained on plain quotes and letters")
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            _read_definition(line, where, tables)
        elif line.startswith("["):
            if draft is not None:
                blocks.append(draft.done())
            match = _HEADER.fullmatch(line)
            if match is None or match[1] not in KINDS:
                raise TalkError(
                    f"{where}: {line!r} is no header; write [kind] or [kind*2], kind one of {', '.join(KINDS)}"
                )
            draft = _Draft(match[1], float(match[2] or 1), where)
        elif line.startswith(("U: ", "A: ")) and draft is not None:
            draft.add(line[0], line[3:], where)
        else:
            raise TalkError(
                f"{where}: {line[:40]!r} is neither a header, `U: `, `A: `, `@slot`, `@table` nor a comment"
            )
    if draft is not None:
        blocks.append(draft.done())
    return blocks


def _resolve(block: Block, name: str, definitions: dict[str, dict[str, Rows]]) -> Rows:
    """The rows of a name: those of the block's own file, of slots.txt, or of the one other file that defines it."""
    for file in (block.where.split(":")[0], SHARED_FILE):
        if name in definitions.get(file, {}):
            return definitions[file][name]
    found = [file for file, tables in definitions.items() if name in tables]
    if not found:
        raise TalkError(f"{block.where}: {{{name}}} is in no @slot and no @table")
    if len(found) > 1:
        raise TalkError(f"{block.where}: {{{name}}} is defined in {' and '.join(found)}; define it here too, or once")
    return definitions[found[0]][name]


def _with_tables(block: Block, definitions: dict[str, dict[str, Rows]]) -> Block:
    """The block with the rows that its holes need; TalkError if a hole cannot be filled."""
    tables: dict[str, Rows] = {}
    for text in (text for alternatives in block.lines for text in alternatives):
        for name, draw, column in _HOLE.findall(text):
            rows = tables.setdefault(name, _resolve(block, name, definitions))
            if int(column or 0) >= len(rows[0]) or (not column and len(rows[0]) > 1):
                raise TalkError(f"{block.where}: {name!r} has {len(rows[0])} columns; {text!r} asks for another")
            if int(draw or 1) > len(rows):
                raise TalkError(f"{block.where}: {{{name}#{draw}}} asks for more draws than {name!r} has rows")
        rest = _HOLE.sub("", text)
        if "{" in rest or "}" in rest:
            raise TalkError(f"{block.where}: {text!r} holds a brace that is no {{slot}}, {{slot#2}} or {{table.0}}")
    return replace(block, tables=tables)


def read_talk(folder: Path = TALK_FOLDER) -> tuple[Block, ...]:
    """The blocks of every `*.txt` of the folder; TalkError says what breaks the format and where."""
    definitions: dict[str, dict[str, Rows]] = {}
    blocks: list[Block] = []
    for path in sorted(folder.glob("*.txt")):
        blocks += _read_file(path, definitions.setdefault(path.name, {}))
    return tuple(_with_tables(block, definitions) for block in blocks)


@cache
def _shipped() -> tuple[Block, ...]:
    return read_talk()


# ---------------------------------------------------------------- generating


def _fill(text: str, drawn: dict[str, list[tuple[str, ...]]]) -> str:
    """The text with its holes filled: a capital at a sentence's start, `an` before a vowel."""
    pieces: list[str] = []
    end = 0
    for hole in _HOLE.finditer(text):
        before = text[end : hole.start()]
        name, draw, column = hole.groups()
        value = drawn[name][int(draw or 1) - 1][int(column or 0)]
        so_far = text[: hole.start()]
        if not so_far or re.search(r"[.!?] \"?$|^\"$", so_far):
            value = value[0].upper() + value[1:]
        if re.search(r"\b[Aa] $", so_far) and _VOWEL_SOUND.match(value):
            before = before[:-1] + "n "
        pieces += [before, value]
        end = hole.end()
    return "".join(pieces) + text[end:]


def expand(block: Block, rng: random.Random) -> list[str]:
    """One draw of a block: one alternative of each line, its holes filled."""
    chosen = [rng.choice(alternatives) for alternatives in block.lines]
    draws: dict[str, int] = {}
    for name, draw, _ in _HOLE.findall(" ".join(chosen)):
        draws[name] = max(draws.get(name, 1), int(draw or 1))
    drawn = {name: rng.sample(block.tables[name], count) for name, count in draws.items()}
    return [_fill(text, drawn) for text in chosen]


def casually(text: str, rng: random.Random) -> str:
    """People type without capitals and marks, or begin with `so,` or `please`; the replies stay as they are."""
    draw = rng.random()
    if draw < 0.04 and _MAY_FOLLOW_SO.match(text):
        text = rng.choice(("Hey, ", "So, ", "Okay, ")) + text[0].lower() + text[1:]
    elif draw < 0.08 and _MAY_FOLLOW_PLEASE.match(text):
        text = "Please " + text[0].lower() + text[1:]
    draw = rng.random()
    if draw < 0.15:
        return text.lower()
    if draw < 0.3:
        return text.lower().rstrip(".!?")
    if draw < 0.4:
        return text.rstrip(".!?")
    return text


def _pick(blocks: Sequence[Block], rng: random.Random) -> Block:
    return rng.choices(blocks, weights=[block.weight for block in blocks])[0]


def talk(count: int, seed: int, *, blocks: Sequence[Block] | None = None) -> list[Document]:
    """`count` short conversations: perhaps an opening, one to three blocks in the middle, perhaps a closing.

    blocks: what to draw from, by default all that come with this recipe.
    """
    rng = random.Random(seed)
    every = _shipped() if blocks is None else blocks
    by_kind = {kind: [block for block in every if block.kind == kind] for kind in KINDS}
    shares = {kind: share for kind, share in MIDDLE_SHARES.items() if by_kind[kind]}
    if not shares:
        raise TalkError(f"no block of a kind among {', '.join(MIDDLE_SHARES)}: there is nothing to talk about")
    documents: list[Document] = []
    for _ in range(count):
        chosen: list[Block] = []
        if by_kind["opening"] and rng.random() < OPENING_SHARE:
            chosen.append(_pick(by_kind["opening"], rng))
        for kind in rng.choices(list(shares), weights=list(shares.values()), k=rng.choice(MIDDLES)):
            block = _pick(by_kind[kind], rng)
            if block not in chosen:
                chosen.append(block)
        if by_kind["closing"] and rng.random() < CLOSING_SHARE:
            chosen.append(_pick(by_kind["closing"], rng))
        turns = [text for block in chosen for text in expand(block, rng)]
        turns[::2] = [casually(text, rng) for text in turns[::2]]
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < SYSTEM_SHARE else ""
        documents.append(conversation(turns, system=system))
    return documents
