"""A conversation five times longer than the context, on the built-in model: what it was told at the beginning holds.

The probe is constrained: of two answers to the same request, a call of the offered tool and the refusal that the model
learnt for tools that are not there, the likelier one is its choice. So nothing depends on sampling.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import wattwise
from wattwise.events import Evicted
from wattwise.model import Model
from wattwise.prefix import NO_TOKENS
from wattwise_runtimes.contracts import Batch

CONTEXT = 320
TIMER = {
    "type": "function",
    "function": {
        "name": "set_timer",
        "description": "Start a timer",
        "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
    },
}
REQUEST = "Set a timer for 20 minutes."
CALL, REFUSAL = '<tool_call>{"name": "set_timer"', "I cannot set timers here."
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


def likelihood(model: Model, prompt: list[int], answer: str) -> float:
    """Log-likelihood of an answer after a prompt, from what is held of it; the held text is as before afterwards."""
    ids = model.tokenizer.encode(answer, parse_special=True)
    start = model.held.rewind_to([*prompt, 0])
    new = [*prompt[start:], *ids[:-1]]
    done, rows = 0, []
    while done < len(new):
        piece = model.held.piece(len(new) - done)
        model.held.make_room(piece, NO_TOKENS)
        rows.append(model.engine.forward(Batch(new[done : done + piece], logits="all")).astype(np.float64))
        model.held.extend(new[done : done + piece])
        done += piece
    logits = np.concatenate(rows)[-len(ids) :]
    logp = logits - logits.max(axis=1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(axis=1, keepdims=True))
    return float(logp[np.arange(len(ids)), ids].sum())


def test_the_instruction_holds_and_every_loss_is_listed(model: Model) -> None:
    chat = model.conversation(tools=[TIMER])
    lost: set[int] = set()
    total = 0
    while total < 5 * CONTEXT:
        for said in TALK:
            reply = chat.say(said, max_tokens=40, temperature=0)
            total = reply.stats.cache_n + reply.stats.prompt_n + reply.stats.predicted_n
            lost |= {index for event in reply.events if isinstance(event, Evicted) for index, _ in event.messages}
            assert model.engine.kv.length <= model.engine.kv.capacity_tokens <= CONTEXT

    request = [*chat.messages, {"role": "user", "content": REQUEST}]
    prompt = model.prompt_ids(request, tools=[TIMER])
    assert len(prompt) > 5 * CONTEXT
    call, refusal = (likelihood(model, prompt, answer) for answer in (CALL, REFUSAL))
    assert call > refusal, "the list of tools, read at the very beginning, still counts"

    held = set(np.concatenate([np.unique(p) for p in _held_tokens(model)]).tolist())
    spans = model._spans(prompt, request, [TIMER], ())  # whose each token is
    gone = {s.message for s in spans if not held & set(range(s.start, s.stop)) and s.message < len(chat.messages)}
    assert len(gone) > 10, "most of the conversation is not held any more"
    assert gone <= lost, "each message that is gone was named by an event"

    model.forget()
    alone = model.prompt_ids([{"role": "user", "content": REQUEST}])
    assert likelihood(model, alone, REFUSAL) > likelihood(model, alone, CALL), "without the tool it would refuse"


def _held_tokens(model: Model) -> list[np.ndarray]:
    """Token numbers that some head holds; positions are token numbers while holes are kept."""
    view = model.engine.kv.view()
    if view.head_positions is None:
        return [view.positions]
    return [view.head_positions(layer) for layer in range(view.layers)]
