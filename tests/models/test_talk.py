"""The talk files: every block expands to plain text, the format's errors name their place, the generator alternates."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest
from models.talk import KINDS, MIDDLE_SHARES, SYSTEM_PROMPTS, Block, TalkError, casually, expand, read_talk, talk

PETS = """
# a comment
@slot pet = dog | cat | owl
@table capital = France, Paris | Spain, Madrid

[topic*2]
U: I have a {pet} and a {pet#2}. | {pet}!
A: {pet} and {pet#2}. A {pet}!

[question]
U: What is the capital of {capital.0}?
A: It is {capital.1}.
"""


def blocks_of(folder: Path, text: str, **others: str) -> tuple[Block, ...]:
    for name, content in ({"talk": text} | others).items():
        (folder / f"{name}.txt").write_text(content, encoding="utf-8")
    return read_talk(folder)


@pytest.fixture(scope="module")
def shipped() -> tuple[Block, ...]:
    return read_talk()


def test_every_block_that_comes_with_the_recipe_expands_to_plain_lines(shipped: tuple[Block, ...]) -> None:
    rng = random.Random(5)
    for block in shipped:
        for _ in range(200):
            turns = expand(block, rng)
            assert len(turns) == len(block.lines)
            for text in turns:
                # An opening brace belongs to a hole only, so none may be left once all are filled.
                assert "{" not in text and "}" not in text and "|" not in text, (block.where, text)
                assert text.isascii() and text == " ".join(text.split()), (block.where, text)


def test_there_are_lines_of_every_kind_and_enough_with_follow_ups(shipped: tuple[Block, ...]) -> None:
    kinds = Counter(block.kind for block in shipped)
    assert set(kinds) == set(KINDS)
    topics = [block for block in shipped if block.kind == "topic"]
    assert len(topics) > 100
    assert sum(len(block.lines) > 2 for block in topics) >= len(topics) / 2


def test_answers_are_sentences_of_a_length_that_a_small_model_can_learn(shipped: tuple[Block, ...]) -> None:
    for block in shipped:
        for answer in itertools.chain.from_iterable(block.lines[1::2]):
            assert len(answer) < 400, (block.where, answer)
        if block.kind in ("opening", "about", "closing"):
            for text in itertools.chain.from_iterable(block.lines):
                assert text[0].isupper() or text[0] == "{" or text.startswith("wattwise"), (block.where, text)


def test_draws_are_one_per_block_and_a_second_one_differs(tmp_path: Path) -> None:
    pets, capitals = blocks_of(tmp_path, PETS)
    assert (pets.kind, pets.weight, pets.where) == ("topic", 2.0, "talk.txt:6")
    rng, seen = random.Random(0), set()
    for _ in range(100):
        first, second = expand(pets, rng)
        one, other = second.split(".")[0].split(" and ")
        one = one.lower()
        article = "an" if one == "owl" else "a"
        assert one != other
        assert second.endswith(f". {article.capitalize()} {one}!")
        assert first in (f"I have {article} {one} and {'an' if other == 'owl' else 'a'} {other}.", f"{one.title()}!")
        seen.add(tuple(expand(capitals, rng)))
    assert seen == {
        ("What is the capital of France?", "It is Paris."),
        ("What is the capital of Spain?", "It is Madrid."),
    }


def test_a_files_own_definition_comes_first_and_an_unclear_one_is_refused(tmp_path: Path) -> None:
    line = "[topic]\nU: {pet}.\nA: {pet}!\n"
    (own,) = blocks_of(tmp_path, "@slot pet = dog\n" + line, other="@slot pet = cat\n")
    assert expand(own, random.Random(0)) == ["Dog.", "Dog!"]
    (tmp_path / "talk.txt").write_text(line)
    assert expand(read_talk(tmp_path)[0], random.Random(0)) == ["Cat.", "Cat!"]
    (tmp_path / "third.txt").write_text("@slot pet = fish\n")
    with pytest.raises(TalkError, match=r"talk\.txt:1: \{pet\} is defined in other\.txt and third\.txt"):
        read_talk(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[topic]\nU: Hi\n", r"talk\.txt:1: the block has 1 lines; it must end with an A: line"),
        ("[topic]\n[topic]\nU: Hi\nA: Ho\n", r"talk\.txt:1: the block has 0 lines"),
        ("[topic]\nA: Hi\n", r"talk\.txt:2: A: follows A:"),
        ("[topic]\nU: Hi\nU: Ho\n", r"talk\.txt:3: U: follows U:"),
        ("[topic]\n" + "U: Hi\nA: Ho\n" * 5, r"talk\.txt:1: the block has 5 exchanges, at most 4"),
        ("[gossip]\nU: Hi\nA: Ho\n", r"talk\.txt:1: '\[gossip\]' is no header.*opening, topic"),
        ("[topic*-1]\nU: Hi\nA: Ho\n", r"talk\.txt:1: .* is no header"),
        ("U: Hi\nA: Ho\n", r"talk\.txt:1: 'U: Hi' is neither"),
        ("[topic]\nHi\n", r"talk\.txt:2: 'Hi' is neither"),
        ("[topic]\nU: Hi | | Ho\nA: Ho\n", r"talk\.txt:2: an alternative is empty"),
        ("[topic]\nU: Hi |\nA: Ho\n", r"talk\.txt:2: an alternative is empty"),
        ("[topic]\nU: Hi | Hi\nA: Ho\n", r"talk\.txt:2: 'Hi' stands there twice"),
        ("[topic]\nU: Hi\nA: \u201cHo\u201d\n", r"talk\.txt:3: '\u201c' is not ASCII"),
        ("[topic]\nU: {pet}\nA: Ho\n", r"talk\.txt:1: \{pet\} is in no @slot"),
        ("@slot pet = a | b\n[topic]\nU: {pet.1}\nA: Ho\n", r"'pet' has 1 columns"),
        ("@table x = a, b\n[topic]\nU: {x}\nA: Ho\n", r"'x' has 2 columns"),
        ("@slot pet = a | b\n[topic]\nU: {pet#3}\nA: Ho\n", r"more draws than 'pet' has rows"),
        ("@slot pet = a\n[topic]\nU: {Pet}\nA: Ho\n", r"'\{Pet\}' holds a brace"),
        ("@slot pet = a\n@slot pet = b\n", r"talk\.txt:2: 'pet' is defined twice"),
        ("@table x = a, b | c\n", r"talk\.txt:1: row 'c' has not 2 filled columns"),
        ("@table x = a, b | c, \n", r"talk\.txt:1: row 'c, ' has not 2 filled columns"),
        ("@slots pet = a\n", r"talk\.txt:1: '@slots pet = a' is no definition"),
    ],
)
def test_what_breaks_the_format_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TalkError, match=message):
        blocks_of(tmp_path, text)


def test_talk_is_the_same_for_the_same_seed_and_alternates(shipped: tuple[Block, ...]) -> None:
    first, again, other = talk(300, 1), talk(300, 1), talk(300, 2)
    assert first == again != other
    for document in first:
        turns = [turn for turn in document.turns if turn.role != "system"]
        assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert turns[0].content and document.rendered().isascii()
    systems = [document.turns[0].content for document in first if document.turns[0].role == "system"]
    assert set(systems) <= set(SYSTEM_PROMPTS)
    assert 40 < len(systems) < 110


def test_without_lines_of_a_middle_kind_there_is_nothing_to_talk_about(tmp_path: Path) -> None:
    hello = blocks_of(tmp_path, "[opening]\nU: Hi\nA: Ho\n")
    with pytest.raises(TalkError, match="nothing to talk about"):
        talk(1, 0, blocks=hello)
    questions = blocks_of(tmp_path, "[question]\nU: Why?\nA: Because.\n")
    contents = {
        tuple(turn.content.lower() for turn in d.turns if turn.role != "system") for d in talk(50, 0, blocks=questions)
    }
    assert {content[1:] for content in contents} == {("because.",)}
    assert set(MIDDLE_SHARES) < set(KINDS)


def test_people_type_casually_but_say_the_same() -> None:
    rng = random.Random(3)
    questions = Counter(casually("What is a dog?", rng) for _ in range(2000))
    assert questions["What is a dog?"] > 1000
    assert questions["what is a dog"] > 100
    assert questions["So, what is a dog?"] > 3
    assert all(typed.lower().rstrip("?").endswith("what is a dog") for typed in questions)
    assert any(typed == "Please tell me a joke." for typed in (casually("Tell me a joke.", rng) for _ in range(500)))
    assert not any("please" in casually("Hello.", rng).lower() for _ in range(500))
