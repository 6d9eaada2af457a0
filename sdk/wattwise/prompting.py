"""From messages to prompt ids, without letting a message speak the template's control tokens.

A template's `<|im_end|>` must become the control token; the same characters typed by a user must not. Where no
message spells a control token the rendered text is encoded whole. Where one does, its spelling is marked before
rendering, and those stretches alone are encoded as plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from wattwise_devices.errors import PlanError
from wattwise_runtimes.text.template import ChatTemplate
from wattwise_runtimes.text.tokenizer import Tokenizer
from wattwise_runtimes.text.vocabulary import CONTROL

_MARK = "\ufdd0"  # a Unicode noncharacter: never part of text that is interchanged


def encode_chat(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    answer: bool = True,
) -> list[int]:
    """Ids of the rendered conversation, with answer ready for the assistant's turn.

    Raises TemplateError, and PlanError for tools that the template would leave out without a word.
    """
    if tools and "tools" not in template.source:
        raise PlanError(
            "the model's chat template has no place for tools, so it would never see them. "
            "Describe them in the system prompt, or use a model whose template takes tools.",
            clash=("tools", "the chat template"),
        )
    marked, found = _mark(list(messages), _control_spellings(tokenizer))
    rendered = template.render(marked, tools=tools, add_generation_prompt=answer)
    ids: list[int] = []
    if not found:
        ids = tokenizer.encode(rendered, parse_special=True)
    else:
        for i, part in enumerate(rendered.split(_MARK)):  # odd parts stood between two marks
            if part:
                ids += tokenizer.encode(part, parse_special=i % 2 == 0, continues=i > 0)
    if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
    return ids


@lru_cache(maxsize=8)
def _control_spellings(tokenizer: Tokenizer) -> tuple[str, ...]:
    """How the vocabulary's control tokens are written, the longest first."""
    vocabulary = tokenizer.vocabulary
    texts = (text for text, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == CONTROL)
    return tuple(sorted((text for text in texts if len(text) > 1), key=len, reverse=True))


def _mark(value: Any, specials: Sequence[str]) -> tuple[Any, bool]:
    """A copy with every control spelling in a text put between marks, and whether there was one."""
    if isinstance(value, str):
        clean = value.replace(_MARK, "")
        marked = clean
        for special in specials:
            if special in marked:
                marked = _MARK.join(
                    part if i % 2 else part.replace(special, f"{_MARK}{special}{_MARK}")
                    for i, part in enumerate(marked.split(_MARK))
                )
        return marked, marked != clean
    if isinstance(value, Mapping):
        pairs = {k: _mark(v, specials) for k, v in value.items()}
        # Roles and names choose branches of the template, they are not free text.
        kept = {k: (value[k] if k in ("role", "type") else v) for k, (v, _) in pairs.items()}
        return kept, any(f for k, (_, f) in pairs.items() if k not in ("role", "type"))
    if isinstance(value, Sequence):
        items = [_mark(v, specials) for v in value]
        return [v for v, _ in items], any(f for _, f in items)
    return value, False
