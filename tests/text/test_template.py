"""Chat templates: rendering, errors, and the limits on time, memory and output."""

from __future__ import annotations

import time
import tracemalloc
from datetime import datetime

import pytest

from text.tiny import byte_level
from wattwise_devices.errors import TemplateError
from wattwise_runtimes.text.template import ChatTemplate, default_template
from wattwise_runtimes.text.tokenizer import Tokenizer

USER = [{"role": "user", "content": "hi"}]
MANY = "range(99999)"


def render(source: str, messages=USER, **variables) -> str:
    return ChatTemplate(source, "<s>", "</s>", clock=lambda: datetime(2026, 3, 4, 5, 6)).render(messages, **variables)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m['content'] }}{% endfor %}", "<s>user:hi"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ {'b': '<é>', 'a': [1, none, true]} | tojson }}", '{"b": "<é>", "a": [1, null, true]}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ strftime_now('%d %b %Y') }}", "04 Mar 2026"),
        ("{% generation %}x{% set a = 1 %}{% endgeneration %}{{ a is defined }}", "xFalse"),
        ("{{ tools is none }}{{ documents is none }}{{ unk_token is defined }}", "TrueTrueFalse"),
        ("{{ add_generation_prompt }}{{ enable_thinking }}", "TrueFalse"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{{ messages[0].content.upper() ~ 1 ~ 'a' * 3 ~ '%s-%d' % ('x', 2) ~ '{}'.format(7) }}", "HI1aaax-27"),
        ("{{ messages | map(attribute='role') | join(',') }}{{ 'a-b'.split('-') | last }}", "userb"),
        ("{{ dict(a=1).items() | list }}{{ (1, 2)[0] }}{{ 'abc'[::-1] }}", "[('a', 1)]1cba"),
        ("{% macro m(x) %}[{{ x }}{{ caller() }}]{% endmacro %}{% call m(1) %}y{% endcall %}", "[1y]"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x | trim }}{% filter upper %}b{% endfilter %}", "a1B"),
    ],
)
def test_what_templates_use(source, text) -> None:
    assert render(source, enable_thinking=False) == text


def test_reasoning_goes_by_either_name() -> None:
    source = "{{ messages[0].reasoning_content }}{{ messages[0].thinking }}"
    assert render(source, [{"role": "assistant", "content": "x", "reasoning": "r"}]) == "rr"


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% if %}", "cannot be compiled.*line 1"),
        ("{{ messages[3].content }}", "has no element 3"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'other' %}", "no loader"),
        ("{{ 'a' | pprint }}", "pprint"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{{ lipsum() }}", "lipsum"),
        ("{% set n = namespace(_x=1) %}", "_x"),
        ("x" * 70_000, "70000 characters"),
    ],
)
def test_failures_are_template_errors(source, match) -> None:
    with pytest.raises(TemplateError, match=match):
        render(source)


@pytest.mark.parametrize("message", ["hi", {"role": "user", "content": object()}, {"role": b"user"}])
def test_messages_are_plain_data(message) -> None:
    with pytest.raises(TemplateError):
        render("{{ messages }}", [message])


def test_deep_messages() -> None:
    nested: list = []
    for _ in range(100):
        nested = [nested]
    with pytest.raises(TemplateError, match="deeper"):
        render("{{ messages }}", [{"role": "user", "content": nested}])


DOUBLED = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
BOMBS = {
    "times": "{{ 'a' * 10 ** 9 }}",
    "list times": "{{ [1] * 10 ** 9 }}",
    "power": "{{ 99999 ** 99999999 }}",
    "product": "{{ (9 ** 1000) ** 1000 }}",
    "loops": f"{{% for a in {MANY} %}}{{% for b in {MANY} %}}{{% endfor %}}{{% endfor %}}",
    "loop test": f"{{% for a in {MANY} if ({MANY} | list | length) == 1 %}}{{% endfor %}}",
    "output": f"{{% for a in {MANY} %}}{'x' * 500}{{% endfor %}}",
    "concatenation": DOUBLED.replace("START", "'aaaa'").replace("STEP", "ns.x ~ ns.x"),
    "addition": DOUBLED.replace("START", "'aaaa'").replace("STEP", "ns.x + ns.x"),
    "nested lists": DOUBLED.replace("START", "[1]").replace("STEP", "[ns.x, ns.x, ns.x]"),
    "nested dicts": DOUBLED.replace("START", "1").replace("STEP", "{'a': ns.x, 'b': ns.x}"),
    "nested dict()": DOUBLED.replace("START", "1").replace("STEP", "dict(a=ns.x, b=ns.x)"),
    "nested namespaces": DOUBLED.replace("START", "1").replace("STEP", "namespace(x=ns.x, y=ns.x)"),
    "namespace in itself": "{% set a = namespace() %}{% set a.s = a %}{% set a.t = a %}{{ a }}",
    "format": "{{ '{:1000000000}'.format('a') }}",
    "format in format": "{{ '{:{w}}'.format('a', w=999999) }}",
    "format by map": "{{ ['a'] | map('format') | list }}{{ '%999999999s' | format('a') }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "just": f"{{% for i in {MANY} %}}{{% set x = 'a'.ljust(1000000) %}}{{% endfor %}}",
    "join": f"{{{{ ('a' * 100000).join({MANY} | map('string')) }}}}",
    "join filter": f"{{{{ {MANY} | join('a' * 100000) }}}}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace nothing": "{{ ('a' * 100000) | replace('', 'b' * 100000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
    "expandtabs": "{{ ('\\t' * 1000000).expandtabs(1000000) }}",
    "indent": "{{ ('\\n' * 1000000) | indent(1000000) }}",
    "tojson": "{{ [1, 2] | tojson(indent=1000000000) }}",
    "macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "captured": f"{{% set x %}}{{% for i in {MANY} %}}{{{{ 'a' * 100000 }}}}{{% endfor %}}{{% endset %}}",
    "sum of lists": "{{ (([[1, 2, 3]] * 100000) | sum(start=[])) | length }}",
    "defaults": "{{ range(1000) | map(attribute='q', default='x' * 100000) | list | string | length }}",
    "batch": "{{ range(1) | batch(1000000000, 'x') | list }}",
    "digits": "{{ " + "9" * 5000 + " }}",
    "brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "many values": "".join(f"{{% set a{i} = ('a' * 4000000) + '' %}}" for i in range(400)),
    "many slices": "{% set x = 'a' * 4000000 %}" + "".join(f"{{% set a{i} = x[1:] %}}" for i in range(400)),
    "many parts": "{% set x = 'a' * 4000000 %}" + "".join(f"{{% set a{i} = x.split('b') %}}" for i in range(400)),
    "many characters": "{% set x = 'a' * 4000000 %}" + "".join(f"{{% set a{i} = x | list %}}" for i in range(400)),
    "long source": "{% if ('a' * 4000000) == ('a' * 4000000) %}{% endif %}" * 300,
    "growing dict": f"{{% set n = namespace(d={{}}) %}}{{% for i in {MANY} %}}"
    "{% set n.d = dict(n.d, **{i | string: n.d}) %}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_quickly(name) -> None:
    """A template that would take forever or all memory ends in a TemplateError after about a second."""
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(TemplateError):
            ChatTemplate(BOMBS[name], time_limit_seconds=0.3).render(USER)
        assert time.process_time() - began < 3
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
    finally:
        tracemalloc.stop()


def test_long_conversations_are_no_bombs() -> None:
    """What a template looks at again and again is not counted again; the limit grows with the input."""
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": "some text " * 60} for i in range(1000)]
    source = (
        "{% set ns = namespace(last=-1) %}{% for m in messages[::-1] %}"
        "{% set i = (messages | length - 1) - loop.index0 %}"
        "{% if m.role == 'user' and ns.last < 0 %}{% set ns.last = i %}{% endif %}{% endfor %}"
        "{% for m in messages %}{{ (m.content | trim).split('</think>')[-1].lstrip() ~ '\n' }}{% endfor %}{{ ns.last }}"
    )
    assert len(render(source, turns)) == 1000 * 600 + 3
    messages = [{"role": "user", "content": "x" * 100_000}] * 100
    assert len(render("{% for m in messages %}{{ m.content }}{% endfor %}", messages)) == 10_000_000


def test_a_template_can_be_used_again_after_a_bomb() -> None:
    template = ChatTemplate(
        "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}ok", time_limit_seconds=0.1
    )
    with pytest.raises(TemplateError, match="too long"):
        template.render(USER, n=90_000)
    assert template.render(USER, n=2) == "ok"


def test_default_template() -> None:
    text = default_template("<s>").render([{"role": "system", "content": "Be brief."}, *USER])
    assert text == "<s>### System:\nBe brief.\n\n### User:\nhi\n\n### Assistant:\n"


def test_template_of_a_tokenizer() -> None:
    source = "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}"
    tokenizer = Tokenizer(byte_level(chat_template=source))
    assert ChatTemplate.for_tokenizer(tokenizer).render(USER) == "<|endoftext|><|im_end|>False"
    with pytest.raises(TemplateError, match="no chat template"):
        ChatTemplate.for_tokenizer(Tokenizer(byte_level()))
