"""Conversation: messages that grow turn by turn over one model, keeping the KV rows that still apply."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wattwise.reply import Reply
from wattwise.streaming import Stream

if TYPE_CHECKING:
    from wattwise.model import Model

Message = dict[str, Any]
_ASKING = ("user", "tool")  # the roles that wait for an answer


class Conversation:
    """`say` for a reply, `stream` for its pieces. The user's turn is stored before anything is generated.

    A turn that gets no answer at all (cancelled before the first token, too long for the context, never iterated) is
    not kept, because many templates refuse two user's turns in a row. A stopped answer is kept as far as it got.
    Each turn renders all messages and recomputes only from the first token that changed, so editing `messages`
    between turns is allowed and costs exactly what follows the edit.
    """

    def __init__(self, model: Model, system: str | None = None, tools: Sequence[Message] | None = None) -> None:
        self._model = model
        self._tools = tools
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []

    def say(self, text: str, **options: Any) -> Reply:
        """Add a user's turn and the model's reply to it. Options as in `Model.stream`."""
        return self.stream(text, **options).run()

    def say_result(self, result: str, **options: Any) -> Reply:
        """Add what a called tool returned, as text or JSON, and the model's reply to it."""
        return self.stream(result, role="tool", **options).run()

    def stream(self, text: str, *, role: Literal["user", "tool"] = "user", **options: Any) -> Stream:
        """The same, piece by piece. role "tool": the text is the result of a tool that the last reply called."""
        turn = {"role": role, "content": text}
        return self._model.stream(
            [*self.messages, turn],
            tools=self._tools,
            on_start=lambda: self.messages.append(turn),
            on_end=self._store,
            **options,
        )

    def regenerate(self, **options: Any) -> Stream:
        """Another reply in place of the last one, which stays if nothing comes of it."""
        last = len(self.messages)
        if last and self.messages[-1]["role"] == "assistant":
            last -= 1
        if not last or self.messages[last - 1]["role"] not in _ASKING:
            raise ValueError("there is no user's turn to answer; use say or stream first")

        def replace(reply: Reply) -> None:
            if not _is_nothing(reply):
                self.messages[last:] = [{"role": "assistant", "content": reply.text}]

        return self._model.stream(self.messages[:last], tools=self._tools, on_end=replace, **options)

    def undo(self) -> str | None:
        """Take the last user's turn (and what followed) back; its text, or None if there was none."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i]["role"] == "user":
                text = self.messages[i]["content"]
                del self.messages[i:]
                return text
        return None

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
        self.messages = messages

    def _store(self, reply: Reply) -> None:
        if not _is_nothing(reply):
            self.messages.append({"role": "assistant", "content": reply.text})
        elif self.messages and self.messages[-1]["role"] in _ASKING:
            self.messages.pop()


def _is_nothing(reply: Reply) -> bool:
    """Whether it ended before it said anything. An empty reply that the model chose to give is one."""
    return not reply.text and reply.finish_reason == "cancelled"


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
