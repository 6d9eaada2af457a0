"""Whose a token is: against ids whose boundaries are known by construction, with templates that make it hard."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from support.chat_model import byte_tokenizer
from wattwise.kv.spans import by_message, message_spans, protected_tokens
from wattwise.model import chat_template
from wattwise.prompting import encode_chat

NO_LONE_SYSTEM = (
    "{% if messages|length == 1 and messages[0].role == 'system' %}{{ raise_exception('no user') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "And again"},
]


def spans_of(template: str | None, messages=MESSAGES, pinned: frozenset[int] = frozenset()):
    tokenizer = byte_tokenizer(template) if template else byte_tokenizer()
    made, _ = chat_template(tokenizer)
    ids = encode_chat(made, tokenizer, messages)
    spans = message_spans(ids, messages, lambda part: encode_chat(made, tokenizer, part, answer=False), pinned)
    return ids, spans, tokenizer


def test_every_token_is_somebodys_and_texts_are_in_their_own_span() -> None:
    ids, spans, tokenizer = spans_of(None)
    assert [span.message for span in spans] == [0, 1, 2, 3]
    assert spans[0].start == 0 and spans[-1].stop == len(ids)
    assert all(a.stop == b.start for a, b in itertools.pairwise(spans))
    for span, message in zip(spans, MESSAGES, strict=True):
        assert message["content"] in tokenizer.decode(ids[span.start : span.stop])


def test_the_system_prompt_and_pinned_messages_are_protected() -> None:
    _, spans, _ = spans_of(None, pinned=frozenset({2}))
    assert [span.protected for span in spans] == [True, False, True, False]
    tokens = protected_tokens(spans)
    assert tokens.tolist() == [*range(spans[0].start, spans[0].stop), *range(spans[2].start, spans[2].stop)]
    assert protected_tokens([]).tolist() == []


def test_a_template_that_refuses_a_lone_system_prompt_protects_what_took_it_in() -> None:
    ids, spans, tokenizer = spans_of(NO_LONE_SYSTEM)
    assert [span.message for span in spans] == [1, 2, 3]
    assert [span.protected for span in spans] == [True, False, False]
    assert "Be brief." in tokenizer.decode(ids[spans[0].start : spans[0].stop])


def test_counting_by_message() -> None:
    _, spans, _ = spans_of(None)
    first = spans[1].start
    tokens = np.array([0, 1, first, first + 1, first + 2, spans[-1].stop, spans[-1].stop + 5])
    assert by_message(spans, tokens, after=4) == [(0, 2), (1, 3), (4, 2)]
    assert by_message([], tokens, after=0) == [(0, 7)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_message_has_it_all(count: int) -> None:
    ids, spans, _ = spans_of(None, MESSAGES[1 : 1 + count])
    assert sum(span.stop - span.start for span in spans) == len(ids)
