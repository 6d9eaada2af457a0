"""Chat templates: messages to the text that the model was trained on.

Templates are jinja2 programs that come with a model, written for transformers' `apply_chat_template`; they render
here to the same bytes, in a sandbox with limits (see `text.sandbox`). Whatever goes wrong is a TemplateError.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from wattwise_devices.errors import TemplateError
from wattwise_runtimes.text.tokenizer import Tokenizer

MAX_SOURCE_CHARS = 1 << 16  # compiling takes about 15 microseconds per character; real templates have < 20,000
MAX_DEPTH = 64
BASE_LIMIT = 4 << 20  # characters and items of the output and of any value, besides four times the input's
TIME_LIMIT_SECONDS = 1.0

Clock = Callable[[], datetime]

# A plain one for models that bring none: each turn under its role's name, closed by an empty line.
DEFAULT_SOURCE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '### ' ~ (message['role'] | capitalize) ~ ':\\n' ~ (message['content'] | trim) ~ '\\n\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '### Assistant:\\n' -}}{%- endif -%}"
)


class ChatTemplate:
    """One compiled template. Thread-safe: renderings follow one another.

    special tokens are texts that the template may name: bos_token, eos_token and others (unk_token, pad_token).
    clock: what `strftime_now` in a template reads. time_limit_seconds: for one rendering.
    """

    def __init__(
        self,
        source: str,
        bos_token: str | None = "",
        eos_token: str | None = "",
        *,
        clock: Clock = datetime.now,
        time_limit_seconds: float = TIME_LIMIT_SECONDS,
        **special_tokens: str | None,
    ) -> None:
        from wattwise_runtimes.text.sandbox import GuardedEnvironment

        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(f"the chat template has {len(source)} characters; at most {MAX_SOURCE_CHARS} are read")
        self.source = source
        self.special_tokens = {"bos_token": bos_token, "eos_token": eos_token, **special_tokens}
        self.time_limit_seconds = time_limit_seconds
        self._lock = threading.Lock()
        self._environment = GuardedEnvironment(lambda form: clock().strftime(form))
        self._environment.meter.start(time_limit_seconds, BASE_LIMIT, {})
        try:
            self._template = self._environment.guarded_template(source)
        except Exception as error:
            raise _failure("cannot be compiled", error) from None

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, *, clock: Clock = datetime.now) -> ChatTemplate:
        """The template that came with a tokenizer, with its special tokens. TemplateError if it brought none."""
        vocabulary = tokenizer.vocabulary
        if vocabulary.chat_template is None:
            raise TemplateError("the model has no chat template; use `default_template` or give one")

        def text(token: int | None) -> str | None:
            return None if token is None else vocabulary.tokens[token]

        return cls(
            vocabulary.chat_template,
            text(vocabulary.bos_id),
            text(vocabulary.eos_id),
            clock=clock,
            unk_token=text(vocabulary.unk_id),
            pad_token=text(vocabulary.pad_id),
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt for these messages.

        messages: dicts with role and content (OpenAI's shape). tools: JSON schemas of functions. variables: what
        the template offers besides (`enable_thinking`, `documents`, ...), as text, numbers, lists and dicts.
        """
        values: dict[str, Any] = {
            **{name: text for name, text in self.special_tokens.items() if text is not None},
            **{name: _plain(value, name) for name, value in variables.items()},
        }
        values["messages"] = [_with_reasoning(message) for message in _plain(list(messages), "messages")]
        values["tools"] = None if tools is None else _plain(list(tools), "tools")
        values.setdefault("documents", None)
        values["add_generation_prompt"] = add_generation_prompt
        known: dict[int, int] = {}
        limit = BASE_LIMIT + 4 * _remember(values, known)
        with self._lock:
            self._environment.meter.start(self.time_limit_seconds, limit, known)
            return self._run(values, limit)

    def _run(self, values: Mapping[str, Any], limit: int) -> str:
        chunks: list[str] = []
        size = 0
        try:
            for chunk in self._template.generate(values):
                size += len(chunk)
                if size > limit:
                    raise TemplateError(f"the chat template wrote more than {limit} characters")
                chunks.append(chunk)
        except TemplateError:
            raise
        except Exception as error:
            raise _failure("failed", error) from None
        return "".join(chunks)


def default_template(bos_token: str | None = "", eos_token: str | None = "") -> ChatTemplate:
    """A plain template for models that have none: `### Role:`, the text, an empty line, for every turn.

    Such models were not trained on turns; pass a stop string like "\\n### " with it.
    """
    return ChatTemplate(DEFAULT_SOURCE, bos_token, eos_token)


def _failure(what: str, error: BaseException) -> TemplateError:
    text = str(error) or type(error).__name__
    line = getattr(error, "lineno", None)
    where = f" (line {line})" if line else ""
    return TemplateError(
        f"the chat template {what}{where}: {text[:500]}. Messages may be in an order or of a kind that it does not "
        "accept; another template can be given in its place."
    )


def _plain(value: Any, name: str, depth: int = 0) -> Any:
    """A copy made of nothing but JSON's types, so that no method of a caller's object can be reached."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if depth > MAX_DEPTH:
        raise TemplateError(f"{name} is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return {_plain(k, name, depth + 1): _plain(v, name, depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(item, name, depth + 1) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item, name, depth + 1) for item in value)
    raise TemplateError(
        f"{name} holds a {type(value).__name__}; a chat template gets text, numbers, true, false, None, lists and dicts"
    )


def _with_reasoning(message: Any) -> dict[str, Any]:
    """A message's reasoning goes by three names in the wild; templates read the first or the second of them."""
    if not isinstance(message, dict):
        raise TemplateError(f"a message is a {type(message).__name__}, not a dict with role and content")
    names = ("reasoning_content", "thinking", "reasoning")
    found = next((message[name] for name in names if message.get(name) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


def _remember(value: Any, known: dict[int, int]) -> int:
    """Weight of a value, noting that of every container in it."""
    if isinstance(value, str):
        return len(value) + 1
    if isinstance(value, dict):
        weight = 1 + sum(len(k) for k in value if isinstance(k, str)) + sum(_remember(v, known) for v in value.values())
    elif isinstance(value, (list, tuple)):
        weight = 1 + len(value) + sum(_remember(item, known) for item in value)
    else:
        return 1
    known[id(value)] = weight
    return weight
