"""A conversation five times longer than the context, on the built-in model: its system prompt and tools stay, row by
row as they were read, and every message that goes is named by an event.

Whether the model still acts on what it was told at the beginning is another question: this one, of seven million
parameters, does not after a hundred turns, with its full cache either.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import wattwise
from wattwise.events import Evicted
from wattwise.kv.spans import protected_tokens
from wattwise.model import Model

CONTEXT = 320
TIMER = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Start a timer",
        "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
    },
}
TALK = (
    "Hi! How are you?", "I had a long day at work.", "We had too many meetings.", "What is your name?",
    "Tell me a joke.", "I like music.", "What should I cook tonight?", "I have a dog.", "It is raining here.",
    "What is three plus four?", "My brother comes to visit me tomorrow.", "I am tired.", "Do you like books?",
    "I want to learn to swim.",
)  # fmt: skip


@pytest.fixture(params=["llamacpp", "onnx"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    pytest.importorskip({"llamacpp": "llama_cpp", "onnx": "onnxruntime"}[request.param])
    with wattwise.load("builtin", engine=request.param, context=CONTEXT, overflow="evict", threads=1) as loaded:
        yield loaded


def held_tokens(model: Model) -> list[np.ndarray]:
    """Token numbers that each layer's heads hold, [kv_heads, rows]: positions, as long as no holes are closed."""
    view = model.engine.kv.view()
    if view.head_positions is None:
        return [view.positions[None]] * view.layers
    return [view.head_positions(layer) for layer in range(view.layers)]


def keys_of(model: Model, tokens: np.ndarray) -> list[np.ndarray]:
    """Keys of these tokens in every layer and head; an error where one is not held."""
    view = model.engine.kv.view()
    assert view.keys is not None
    found = []
    for layer, held in enumerate(held_tokens(model)):
        for head, keys in enumerate(view.keys(layer)):
            mine = held[min(head, len(held) - 1)]
            rows = np.searchsorted(mine, tokens)
            assert np.array_equal(mine[rows], tokens), "a protected token is not held"
            found.append(keys[rows])
    return found


def test_what_was_told_first_stays_and_every_loss_is_listed(model: Model) -> None:
    chat = model.conversation("You are a friendly assistant.", tools=[TIMER])
    chat.say(TALK[0], max_tokens=40, temperature=0)
    prompt = model.prompt_ids(chat.messages[:2], tools=[TIMER])
    told_first = protected_tokens(model._spans(prompt, chat.messages[:2], [TIMER], ()))
    assert len(told_first) > 20
    before = keys_of(model, told_first)
    lost: set[int] = set()
    total = 0
    while total < 5 * CONTEXT:
        for said in TALK:
            reply = chat.say(said, max_tokens=40, temperature=0)
            total = reply.stats.cache_n + reply.stats.prompt_n + reply.stats.predicted_n
            lost |= {index for event in reply.events if isinstance(event, Evicted) for index, _ in event.messages}
            assert model.engine.kv.length <= model.engine.kv.capacity_tokens <= CONTEXT

    for was, now in zip(before, keys_of(model, told_first), strict=True):
        assert np.array_equal(was, now), "the very rows that were read at the beginning"
    prompt = model.prompt_ids(chat.messages, tools=[TIMER])
    held = set(np.concatenate([positions.reshape(-1) for positions in held_tokens(model)]).tolist())
    spans = model._spans(prompt, chat.messages, [TIMER], ())
    gone = {s.message for s in spans if not held & set(range(s.start, s.stop))}
    assert gone, "some messages are not held by any head any more"
    assert gone <= lost, "each of them was named by an event"
    assert 0 not in lost, "and the system prompt never"
