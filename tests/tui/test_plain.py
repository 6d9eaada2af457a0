"""The plain chat: what it writes, what survives a stop, and that words are wrapped as they stream."""

from __future__ import annotations

import io

import pytest

from support.chat_model import scripted_model
from wattwise_tui.plain import COMMANDS, PlainChat
from wattwise_tui.wrap import WordWrap


def screen_of(text: str) -> str:
    """What a terminal shows after this output: backspaces and newlines played."""
    lines, column = [[]], 0
    for character in text:
        if character == "\n":
            lines.append([])
            column = 0
        elif character == "\b":
            column -= 1
        else:
            line = lines[-1]
            line[column:] = [*line[column:column], character, *line[column + 1 :]]
            column += 1
    return "\n".join("".join(line).rstrip() for line in lines)


def wrapped(pieces: list[str], width: int) -> str:
    out = io.StringIO()
    wrap = WordWrap(out, width)
    for piece in pieces:
        wrap.write(piece)
    return screen_of(out.getvalue())


TEXT = "The quick brown fox jumps over the lazy dog, and then some.\n\nA new line."


@pytest.mark.parametrize("width", [12, 20, 33, 80])
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_wrapping_does_not_depend_on_the_pieces(width: int, size: int) -> None:
    pieces = [TEXT[i : i + size] for i in range(0, len(TEXT), size)]
    shown = wrapped(pieces, width)
    assert all(len(line) <= width for line in shown.splitlines())
    assert shown.split() == TEXT.split(), "no word is cut or lost"
    assert shown == wrapped([TEXT], width)


def test_a_word_longer_than_a_line_is_broken_not_lost() -> None:
    assert wrapped(["x" * 25], 10).replace("\n", "") == "x" * 25
    assert wrapped(["ab", "c defghijklmnop"], 10).replace("\n", "").replace(" ", "") == "abcdefghijklmnop"


def test_wide_characters_count_twice() -> None:
    shown = wrapped(list("漢字漢字 漢字漢字"), 9)
    assert shown == "漢字漢字\n漢字漢字"


def chat(lines: str, reply: bytes = b"fine", **options) -> str:
    out = io.StringIO()
    code = PlainChat(
        scripted_model(reply), options={"temperature": 0, **options}, source=io.StringIO(lines), screen=out
    ).run()
    assert code == 0
    return out.getvalue()


def test_a_conversation_and_its_figures() -> None:
    out = chat("Hello\n\nAgain\n/stats\n")
    assert out.count("fine\n") == 2
    assert out.count("tok/s") >= 2
    assert "reused" in out and "memory predicted" in out


def test_every_command_is_listed_and_none_raises() -> None:
    out = chat("Hi\n" + "".join(f"/{name}\n" for name in COMMANDS if name != "quit") + "/quit\nnever\n")
    for command in COMMANDS.values():
        assert command.usage in out
    assert "never" not in out


def test_save_and_open(tmp_path) -> None:
    path = tmp_path / "a chat.json"
    assert "saved 2 messages" in chat(f"Hi\n/save '{path}'\n")
    out = chat(f"/open '{path}'\n/undo\n/open nowhere.json\n/save\n")
    assert "opened 2 messages" in out and "took back: Hi" in out and "error:" in out and "usage:" in out


def test_an_overlong_message_is_told_and_forgotten() -> None:
    out = chat("y" * 600 + "\nHi\n")
    assert "the context holds 512" in out and "/new" in out
    assert "fine\n" in out, "the next message works, the long one is not in the way"


def test_stats_can_be_switched_off() -> None:
    assert "tok/s" not in chat("/stats off\nHi\n").replace("no reply yet", "")
