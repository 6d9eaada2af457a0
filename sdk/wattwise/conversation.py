"""Conversation: messages that grow turn by turn over one model, keeping the KV rows that still apply."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wattwise.events import Event
from wattwise.reply import Reply
from wattwise.streaming import Stream

if TYPE_CHECKING:
    from wattwise.model import Model
    from wattwise.sessions.open_session import OpenSession
    from wattwise.sessions.record import SessionRecord

Message = dict[str, Any]
_ASKING = ("user", "tool")  # the roles that wait for an answer


class Conversation:
    """`say` for a reply, `stream` for its pieces. The user's turn is stored before anything is generated.

    A turn that gets no answer at all (cancelled before the first token, too long for the context, never iterated) is
    not kept, because many templates refuse two user's turns in a row. A stopped answer is kept as far as it got.
    Each turn renders all messages and recomputes only from the first token that changed, so editing `messages`
    between turns is allowed and costs exactly what follows the edit. pinned: indices of messages that KV eviction must
    not touch, beside those of a single request.

    One with a session is saved after every turn, and when it is closed. Close it, or use it as a context manager, or
    close the model. Made by `Model.conversation`.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        tools: Sequence[Message] | None = None,
        *,
        session: OpenSession | None = None,
    ) -> None:
        self._model = model
        self._tools = tools
        self._session = session
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []
        self.pinned: set[int] = set()
        if session is not None and session.record.messages:
            self.messages = copy.deepcopy(session.record.messages)
            self._tools, self.pinned = session.record.tools, set(session.record.pinned)

    @property
    def session(self) -> SessionRecord | None:
        """The saved session as it was last read or written; None for a conversation that is not saved."""
        return self._session.record if self._session is not None else None

    def take_notes(self) -> list[Event]:
        """Events of opening and closing the session that no reply has told; each is told once, here or by a reply."""
        return self._session.take_notes() if self._session is not None else []

    def close(self) -> None:
        """Save what has changed since the last turn, and let others write the session. Idempotent."""
        if self._session is None:
            return
        saved, pinned = self._session.record, tuple(sorted(self.pinned))
        has_turns = any(message.get("role") != "system" for message in (*self.messages, *saved.messages))
        if has_turns and (self.messages, pinned) != (saved.messages, saved.pinned):
            self._save(self._session, self._session.note, with_rows=False)
        self._session.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def say(self, text: str, **options: Any) -> Reply:
        """Add a user's turn and the model's reply to it. Options as in `Model.stream`."""
        return self.stream(text, **options).run()

    def say_result(self, result: str, **options: Any) -> Reply:
        """Add what a called tool returned, as text or JSON, and the model's reply to it."""
        return self.stream(result, role="tool", **options).run()

    def stream(self, text: str, *, role: Literal["user", "tool"] = "user", **options: Any) -> Stream:
        """The same, piece by piece. role "tool": the text is the result of a tool that the last reply called."""
        turn = {"role": role, "content": text}
        return self._stream([*self.messages, turn], self._store, on_start=lambda: self.messages.append(turn), **options)

    def regenerate(self, **options: Any) -> Stream:
        """Another reply in place of the last one, which stays if nothing comes of it."""
        last = len(self.messages)
        if last and self.messages[-1]["role"] == "assistant":
            last -= 1
        if not last or self.messages[last - 1]["role"] not in _ASKING:
            raise ValueError("there is no user's turn to answer; use say or stream first")

        def replace(reply: Reply) -> None:
            if not _is_nothing(reply):
                if self.messages[-1]["role"] == "assistant":
                    del self.messages[-1]
                self.messages.append({"role": "assistant", "content": reply.text})

        return self._stream(self.messages[:last], replace, **options)

    def undo(self) -> str | None:
        """Take the last user's turn (and what followed) back; its text, or None if there was none."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i]["role"] == "user":
                text = self.messages[i]["content"]
                del self.messages[i:]
                self.pinned = {index for index in self.pinned if index < i}
                return text
        return None

    def edit(self, index: int, text: str) -> None:
        """Replace what a message says. The next turn reads what follows again, or with `move_rows=True` moves its rows.

        Raises IndexError where there is no such message.
        """
        if not 0 <= index < len(self.messages):
            raise IndexError(f"there is no message {index}; there are {len(self.messages)}")
        self.messages[index] = {**self.messages[index], "content": text}

    def save(self, path: str | Path) -> None:
        """Write the messages as JSON."""
        import json

        from wattwise_runtimes.formats.atomic import write_file_atomically

        text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=2)
        write_file_atomically(Path(path), text.encode())

    def load(self, path: str | Path) -> None:
        """Replace the messages by those of a saved conversation."""
        from wattwise_runtimes.formats.json_file import read_json

        saved = read_json(Path(path))
        messages = saved.get("messages") if isinstance(saved, dict) else None
        if not isinstance(messages, list) or not all(_is_message(m) for m in messages):
            raise ValueError(f"{path} is not a saved conversation: it has no list of messages with role and content")
        self.messages, self.pinned = messages, set()

    def _stream(
        self, messages: list[Message], store: Callable[[Reply], None], *, pinned: Collection[int] = (), **options: Any
    ) -> Stream:
        """A reply to these messages, which `store` puts among our own."""
        if self._model.plan.overflow == "summarise":
            messages, pinned, options = self._shortened(messages, pinned, options)
        options = {**options, "tools": self._tools, "pinned": self.pinned.union(pinned)}
        if self._session is None:
            return self._model.stream(messages, on_end=store, **options)
        return self._model.stream(messages, keeping=_SavedTurn(self, self._session, store), **options)

    def _shortened(
        self, messages: list[Message], pinned: Collection[int], options: dict[str, Any]
    ) -> tuple[list[Message], Collection[int], dict[str, Any]]:
        """The same arguments; where the messages had become too long, with a summary in place of the oldest ones."""
        from wattwise.summarising import shortened

        found = shortened(self._model, messages, self._tools, self.pinned.union(pinned), options.get("max_tokens"))
        if found is None:
            return messages, pinned, options
        unsaid = max(0, len(messages) - len(self.messages))  # a turn that is only stored when its reply begins
        behind = self.messages[len(messages) :]  # a reply that is to be replaced by another
        self.messages[:] = [*found.messages[: len(found.messages) - unsaid], *behind]
        self.pinned = {index for index in found.pinned if index < len(self.messages)}
        return found.messages, found.pinned, {**options, "notes": [*options.get("notes", ()), found.event]}

    def _save(self, session: OpenSession, note: Callable[[Event], None], *, with_rows: bool) -> None:
        pinned = [index for index in self.pinned if index < len(self.messages)]
        session.save(self.messages, self._tools, pinned, note, with_rows=with_rows)

    def _store(self, reply: Reply) -> None:
        if not _is_nothing(reply):
            self.messages.append({"role": "assistant", "content": reply.text})
        elif self.messages and self.messages[-1]["role"] in _ASKING:
            self.messages.pop()


class _SavedTurn:
    """`Keeping` for one turn: store puts the reply among the messages, then all of it is saved."""

    def __init__(self, conversation: Conversation, session: OpenSession, store: Callable[[Reply], None]) -> None:
        self._conversation, self._session, self._store = conversation, session, store

    def recall(self, prompt: Sequence[int], protected: np.ndarray, note: Callable[[Event], None]) -> None:
        self._session.recall(prompt, protected, note)

    def save(self, reply: Reply, note: Callable[[Event], None]) -> None:
        self._store(reply)
        if not _is_nothing(reply):
            self._conversation._save(self._session, note, with_rows=True)


def _is_nothing(reply: Reply) -> bool:
    """Whether it ended before it said anything. An empty reply that the model chose to give is one."""
    return not reply.text and reply.finish_reason == "cancelled"


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
