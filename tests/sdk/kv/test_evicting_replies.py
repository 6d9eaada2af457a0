"""Replies and conversations under eviction: nothing is lost silently, and what is protected stays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from support.chat_model import tiny_model
from wattwise.events import Evicted, ReadAgain, in_words
from wattwise.kv.policy import policy_names
from wattwise_devices.errors import BudgetError, ContextOverflow

LONG = "The quick brown fox jumps over the lazy dog. " * 9  # 405 tokens, a byte each
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": LONG}]


def evictions(reply) -> list[Evicted]:
    return [event for event in reply.events if isinstance(event, Evicted)]


@pytest.mark.parametrize("name", policy_names())
def test_a_prompt_longer_than_the_budget_is_read_and_every_loss_is_an_event(name: str) -> None:
    with tiny_model(kv_policy=f"{name}:96:token") as model:
        reply = model.chat(MESSAGES, max_tokens=40, temperature=0)
        assert reply.finish_reason in ("stop", "length")
        lost = evictions(reply)
        assert lost, "a prompt of four times the budget must lose rows"
        assert sum(event.tokens for event in lost) == reply.stats.kv_evicted
        whole = reply.stats.prompt_n + reply.stats.predicted_n
        assert reply.stats.kv_evicted + reply.stats.kv_tokens == whole - 1, "the last token is not read back"
        assert {index for event in lost for index, _ in event.messages} <= {1, 2}, "never of the system prompt"
        assert all(sum(count for _, count in event.messages) == event.tokens for event in lost)
        assert all(event.kv_tokens <= 96 for event in lost)
        assert (reply.stats.kv_policy, lost[0].policy) == (name, name)
        told = in_words(reply.events)
        assert len(told) == 1 and f"{name} evicted {reply.stats.kv_evicted} tokens" in told[0]
        assert json.loads(json.dumps(reply.to_json()))["events"][0]["kind"] == "Evicted"


def test_rows_that_only_some_heads_dropped_are_told_too() -> None:
    with tiny_model(kv_policy="keydiff:96:head") as model:
        reply = model.chat(MESSAGES, max_tokens=4)
        lost = evictions(reply)
        read = reply.stats.prompt_n + reply.stats.predicted_n - 1
        assert sum(event.rows for event in lost) == read - reply.stats.kv_tokens
        assert sum(event.tokens for event in lost) == reply.stats.kv_evicted < sum(event.rows for event in lost)
        assert "rows of every head" in lost[0].message and "rows of every head" in in_words(reply.events)[0]


def test_events_come_as_they_happen() -> None:
    seen: list[int] = []
    with tiny_model(kv_policy="keydiff:96") as model:
        stream = model.stream(MESSAGES, max_tokens=8, temperature=0, on_event=lambda event: seen.append(len(seen)))
        reply = stream.run()
    assert len(seen) == len(reply.events) > 1


def test_a_pinned_message_stays_and_the_system_prompt_too() -> None:
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "My name is Ann."},
        {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": LONG},
    ]  # fmt: skip
    with tiny_model(kv_policy="keydiff:128:token") as model:
        lost = evictions(model.chat(messages, max_tokens=4, pinned=(1,)))
        assert lost and not {0, 1} & {index for event in lost for index, _ in event.messages}
        model.forget()
        free = evictions(model.chat(messages, max_tokens=4))
        assert 1 in {index for event in free for index, _ in event.messages}, "without a pin it would go"


def test_pinning_more_than_the_budget_holds_is_refused_before_anything_is_computed() -> None:
    with tiny_model(kv_policy="keydiff:96") as model:
        with pytest.raises(BudgetError, match="96"):
            model.chat(MESSAGES, pinned=(1,))
        assert model.engine.kv.length == 0


def test_a_conversation_goes_on_far_beyond_its_rows_and_reads_only_what_is_new() -> None:
    with tiny_model(kv_policy="keydiff:128:token") as model:
        chat = model.conversation("Be brief.")
        for turn in range(8):
            reply = chat.say(f"{turn}: " + LONG[:90], max_tokens=12, temperature=0)
            assert reply.stats.kv_tokens <= model.engine.kv.capacity_tokens
            if turn:
                assert reply.stats.prompt_n < 150, "what was read before is not read again"
        assert len(chat.messages) == 17
        assert reply.stats.kv_evicted > 500


def test_without_a_policy_the_same_prompt_is_an_error_as_before() -> None:
    with tiny_model(context=128) as model, pytest.raises(ContextOverflow):
        model.chat(MESSAGES)


def test_a_window_may_be_endless() -> None:
    with tiny_model(kv_policy="window:64") as model:
        reply = model.chat(MESSAGES, max_tokens=400, temperature=1.0, seed=3)
        assert model.engine.kv.next_position <= model.engine.kv.capacity_tokens
        assert reply.stats.predicted_n > 0


def test_raw_prompts_are_evicted_too_but_belong_to_no_message() -> None:
    with tiny_model(kv_policy="keydiff:96:token") as model:
        reply = model.chat(LONG, raw=True, max_tokens=4)
        assert evictions(reply)
        assert "of" not in evictions(reply)[0].message.split("tokens")[1]


def test_cancelling_in_the_middle_of_an_evicting_prompt_leaves_a_usable_model() -> None:
    with tiny_model(kv_policy="h2o:96:token") as model:
        stream = model.stream(MESSAGES, max_tokens=4, on_event=lambda _: stream.cancel())
        with stream:
            list(stream)
        assert stream.reply.finish_reason == "cancelled"
        again = model.chat(MESSAGES, max_tokens=4, temperature=0)
        assert again.stats.cache_n > 0


@pytest.mark.parametrize("level", ["token", "head"])
def test_a_message_that_is_pinned_after_it_was_evicted_is_read_again(level: str) -> None:
    with tiny_model(kv_policy=f"knorm:160:{level}") as model:
        chat = model.conversation("Be brief.")
        chat.say("My name is Ann and I live here.", max_tokens=8, temperature=0)
        lost: set[int] = set()
        while 1 not in lost:
            reply = chat.say(LONG[:90], max_tokens=8, temperature=0)
            lost |= {index for event in evictions(reply) for index, _ in event.messages}
        chat.pinned.add(1)
        reply = chat.say("Who am I?", max_tokens=8, temperature=0)
        again = [event for event in reply.events if isinstance(event, ReadAgain)]
        assert len(again) == 1 and again[0].messages == (1,) and again[0].read_again > 0
        assert "message 2" in again[0].message, "counted from 1, as people do"
        spans = model._spans(model.prompt_ids(chat.messages[:-1]), chat.messages[:-1], None, {1})
        mine = next(span for span in spans if span.message == 1)
        assert not model.held.missing(np.arange(mine.start, mine.stop)).size, "now it is held, by every head"
        calm = chat.say("And you?", max_tokens=8, temperature=0)
        assert not any(isinstance(event, ReadAgain) for event in calm.events), "once is enough"
