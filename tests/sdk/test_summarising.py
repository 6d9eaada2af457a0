"""Overflow "summarise": what is replaced, what stays, and that it is told. The model's words are scripted."""

from __future__ import annotations

import dataclasses

import pytest

from support.chat_model import scripted_model, tiny_model
from wattwise.events import Summarised
from wattwise.model import Model
from wattwise_devices.errors import ContextOverflow

WORDS = "Ann likes tea."


def model_of(context: int = 400) -> Model:
    made = scripted_model([ord(c) for c in WORDS], context=context)
    made.plan = dataclasses.replace(made.plan, overflow="summarise")
    return made


def summaries(reply) -> list[Summarised]:
    return [event for event in reply.events if isinstance(event, Summarised)]


def test_a_conversation_far_longer_than_the_context_goes_on() -> None:
    with model_of() as model:
        chat = model.conversation("Be brief.")
        seen: list[Summarised] = []
        for turn in range(20):
            reply = chat.say(f"This is what I say in turn {turn}.", max_tokens=20)
            assert reply.text == WORDS
            seen += summaries(reply)
            prompt = model.prompt_ids(chat.messages[:-1])
            assert len(prompt) + 20 < model.engine.kv.capacity_tokens
        assert len(seen) > 2
        assert seen[0].summary == WORDS
        assert seen[0].tokens_after < seen[0].tokens_before
        assert seen[0].messages[0] == 1, "the oldest that is not the system prompt"
        system = chat.messages[0]["content"]
        assert system.startswith("Be brief.") and system.count("Summary of the earlier conversation:") == 1
        roles = [m["role"] for m in chat.messages[1:]]
        assert roles == ["user", "assistant"] * (len(roles) // 2), "turns still alternate"
        assert chat.messages[-2]["content"].endswith("turn 19.")


def test_pinned_messages_stay_word_for_word() -> None:
    with model_of() as model:
        chat = model.conversation("Be brief.")
        chat.say("My name is Ann.", max_tokens=20)
        chat.pinned.add(1)
        for turn in range(12):
            chat.say(f"This is what I say in turn {turn}.", max_tokens=20)
        pinned = [chat.messages[index]["content"] for index in chat.pinned]
        assert pinned == ["My name is Ann."]


def test_without_a_system_prompt_the_summary_makes_one() -> None:
    with model_of() as model:
        chat = model.conversation()
        while not chat.messages or chat.messages[0]["role"] != "system":
            reply = chat.say("I say some words again and again.", max_tokens=20)
            assert len(chat.messages) < 30
        assert chat.messages[0]["content"] == f"Summary of the earlier conversation: {WORDS}"
        assert summaries(reply)[0].messages


def test_another_reply_to_a_turn_that_had_to_be_shortened() -> None:
    with model_of() as model:
        chat = model.conversation("Be brief.")
        while True:
            chat.say("I say some words again and again.", max_tokens=20)
            probe = model.prompt_ids(chat.messages[:-1])
            if len(probe) + 120 > model.engine.kv.capacity_tokens:
                break
        before = chat.messages[-2]["content"]
        reply = chat.regenerate(max_tokens=120).run()
        assert summaries(reply)
        assert chat.messages[-1] == {"role": "assistant", "content": WORDS}
        assert chat.messages[-2]["content"] == before
        assert [m["role"] for m in chat.messages[-3:]] != ["user", "assistant", "assistant"]


def test_a_single_message_that_is_too_long_is_still_an_error_with_both_counts() -> None:
    with model_of(200) as model, pytest.raises(ContextOverflow, match="200"):
        model.conversation().say("x" * 300)


def test_the_default_is_an_error() -> None:
    with tiny_model(context=200) as model:
        chat = model.conversation("Be brief.")
        with pytest.raises(ContextOverflow):
            for _ in range(20):
                chat.say("Some words.", max_tokens=20)
