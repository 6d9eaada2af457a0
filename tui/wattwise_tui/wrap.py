"""Wraps text that arrives in pieces at word boundaries, for terminals. Over pipes nothing is wrapped."""

from __future__ import annotations

import unicodedata
from typing import TextIO


class WordWrap:
    """Writes to `screen` in lines of at most `width` columns; a piece is on the screen when `write` returns.

    A word that has begun to show at the end of a line is moved to the next one when it turns out too long: the part
    already written is erased with backspaces, which every terminal knows. Words longer than a line are broken by the
    terminal itself.
    """

    def __init__(self, screen: TextIO, width: int) -> None:
        self._screen, self._width = screen, width
        self._column = 0
        self._word = ""  # the unfinished word at the end of the line, already shown

    def write(self, text: str) -> None:
        """Show some more text."""
        out: list[str] = []
        for character in text:
            if character == "\n":
                out.append("\n")
                self._column, self._word = 0, ""
            elif character == " ":
                if self._column < self._width:
                    out.append(" ")
                    self._column += 1
                self._word = ""
            else:
                self._add(character, out)
        self._screen.write("".join(out))
        self._screen.flush()

    def _add(self, character: str, out: list[str]) -> None:
        columns = columns_of(character)
        if self._column + columns > self._width:
            shown = sum(columns_of(c) for c in self._word)
            if 0 < shown < self._column:  # not the only word of its line
                back = "\b" * shown
                out.append(f"{back}{' ' * shown}{back}\n{self._word}")
                self._column = shown
            else:
                out.append("\n")
                self._column, self._word = 0, ""
        out.append(character)
        self._word += character
        self._column += columns


def columns_of(character: str) -> int:
    """Terminal columns of one character: 0 for combining marks, 2 for wide East Asian ones, else 1."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
