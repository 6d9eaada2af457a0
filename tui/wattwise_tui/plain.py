"""The plain chat: a line-by-line REPL that works in any terminal, over SSH and with a screen reader.

Ctrl-C while a reply streams stops the reply and keeps what there is; at an empty prompt it asks once, then leaves.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from wattwise.events import in_words
from wattwise.model import Model
from wattwise.reply import Reply
from wattwise_devices.errors import ContextOverflow, Error
from wattwise_tui.wrap import WordWrap


@dataclass(frozen=True, slots=True)
class Command:
    """One slash command: how it is written, what it does, and the method that does it."""

    usage: str
    help: str
    run: Callable[[PlainChat, str], bool | None]


class PlainChat:
    """One conversation on one model, in a terminal or over pipes."""

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        options: dict[str, Any] | None = None,
        session: str | None = None,
        source: TextIO | None = None,
        screen: TextIO | None = None,
    ) -> None:
        self._model = model
        self._system = system
        self._options = options or {}
        self._in = source if source is not None else sys.stdin
        self._out = screen if screen is not None else sys.stdout
        self._session = session
        self._chat = model.conversation(system, session=session)
        self._last: Reply | None = None
        self._show_stats = True

    def run(self) -> int:
        """Until /quit or the end of input; always 0: leaving a chat is not a failure."""
        self._banner()
        try:
            self._converse()
        finally:
            self._chat.close()
        self._say("")
        self._say_notes()
        return 0

    def _converse(self) -> None:
        asked_to_leave = False
        while True:
            try:
                line = self._read()
                asked_to_leave = False
            except KeyboardInterrupt:
                if asked_to_leave:
                    break
                asked_to_leave = True
                self._say("(Ctrl-C again or /quit leaves)")
                continue
            if line is None:
                break
            if not self._handle(line):
                break

    def _handle(self, line: str) -> bool:
        """Act on one line; False to leave."""
        text = line.strip()
        if not text:
            return True
        if text.startswith("/"):
            name, _, rest = text[1:].partition(" ")
            command = COMMANDS.get(name)
            if command is None:
                self._say(f"there is no /{name}; /help lists the commands")
                return True
            return command.run(self, rest.strip()) is not False
        self._answer(lambda: self._chat.stream(text, **self._options))
        return True

    def _answer(self, start: Callable[[], Any]) -> None:
        try:
            stream = start()
            screen = WordWrap(self._out, self._width())
            with stream:
                try:
                    for piece in stream:
                        screen.write(piece.text)
                except KeyboardInterrupt:
                    screen.write(" [stopped]")
        except ContextOverflow as error:
            self._say(f"{error} (/new starts over, /undo takes a turn back)")
            return
        except (Error, ValueError) as error:
            self._say(f"error: {error}")
            return
        reply = stream.reply
        self._last = reply
        self._say("")
        for line in in_words(reply.events):
            self._say(f"[{line}]")
        if self._show_stats:
            self._say(f"  {reply.stats.line()}")

    def _banner(self) -> None:
        plan = self._model.plan
        if plan.model == "builtin":  # before anything else: nobody should mistake it for more than it is
            from wattwise.builtin import builtin_info

            self._say(builtin_info())
        self._say(str(plan))
        self._say_notes()
        saved = self._chat.session
        if saved is not None and saved.messages:
            self._say(f"Going on with session {saved.id}, {len(saved.messages)} messages: {saved.title}")
        self._say("Type a message; /help for commands, /quit to leave.")

    def _read(self) -> str | None:
        if self._in is sys.stdin and sys.stdin.isatty():
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() history and editing
            try:
                return input("> ")
            except EOFError:
                return None
        line = self._in.readline()
        return line if line else None

    def _say(self, text: str) -> None:
        WordWrap(self._out, self._width()).write(text + "\n")

    def _width(self) -> int:
        """Columns to fill; over a pipe there is no edge."""
        return shutil.get_terminal_size().columns if self._out.isatty() else sys.maxsize

    # The commands, in the order /help shows them.

    def _help(self, _: str) -> None:
        width = max(len(c.usage) for c in COMMANDS.values())
        for command in COMMANDS.values():
            self._say(f"  {command.usage:{width}}  {command.help}")

    def _new(self, _: str) -> None:
        self._begin()
        self._say("a new conversation")

    def _begin(self) -> None:
        """Leave this conversation for a new one, which is saved if this one was."""
        self._chat.close()
        self._say_notes()
        self._chat = self._model.conversation(self._system, session="new" if self._session else None)

    def _say_notes(self) -> None:
        """What opening and closing a session has brought up."""
        for line in in_words(self._chat.take_notes()):
            self._say(f"[{line}]")

    def _set_system(self, text: str) -> None:
        self._system = text or None
        self._new("")

    def _regenerate(self, _: str) -> None:
        self._answer(lambda: self._chat.regenerate(**self._options))

    def _undo(self, _: str) -> None:
        taken = self._chat.undo()
        self._say("there is nothing to take back" if taken is None else f"took back: {taken}")

    def _plan(self, _: str) -> None:
        self._say(str(self._model.plan))

    def _stats(self, word: str) -> None:
        if word in ("on", "off"):
            self._show_stats = word == "on"
        self._say(self._last.stats.details() if self._last else "no reply yet")
        self._say(str(self._model.report()))

    def _save(self, name: str) -> None:
        if not name:
            self._say("usage: /save FILE")
            return
        self._chat.save(Path(shlex.split(name)[0]).expanduser())
        self._say(f"saved {len(self._chat.messages)} messages")

    def _open(self, name: str) -> None:
        opened = self._model.conversation(session="new" if self._session else None)
        try:
            opened.load(Path(shlex.split(name)[0] if name else "").expanduser())
        except (OSError, ValueError, Error) as error:
            self._say(f"error: {error}")
            return
        self._chat.close()
        self._say_notes()
        self._chat = opened
        self._say(f"opened {len(self._chat.messages)} messages")

    def _quit(self, _: str) -> bool:
        return False


COMMANDS: dict[str, Command] = {
    "help": Command("/help", "this list", PlainChat._help),
    "new": Command("/new", "start a new conversation", PlainChat._new),
    "system": Command("/system [TEXT]", "set the system prompt and start over", PlainChat._set_system),
    "regen": Command("/regen", "answer the last message again", PlainChat._regenerate),
    "undo": Command("/undo", "take the last turn back", PlainChat._undo),
    "plan": Command("/plan", "what runs where, and what it was predicted to cost", PlainChat._plan),
    "stats": Command(
        "/stats [on|off]", "figures of the last reply; show them after each reply or not", PlainChat._stats
    ),
    "save": Command("/save FILE", "write the conversation as JSON", PlainChat._save),
    "open": Command("/open FILE", "continue a saved conversation", PlainChat._open),
    "quit": Command("/quit", "leave", PlainChat._quit),
}
