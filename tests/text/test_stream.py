"""Incremental text: always valid, complete at the end, stop texts found wherever tokens are cut."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from text.tiny import byte_level, spm
from wattwise_runtimes.text.stream import TextStream
from wattwise_runtimes.text.tokenizer import Tokenizer

BPE, SPM = Tokenizer(byte_level()), Tokenizer(spm())
END = BPE.id_of("<|im_end|>")


def run(tokens: list[int], stop: tuple[str, ...] = (), tokenizer: Tokenizer = BPE, **options) -> tuple[str, TextStream]:
    stream = TextStream(tokenizer, stop, **options)
    parts = [stream.push(token) for token in tokens] + [stream.flush()]
    for part in parts:
        part.encode("utf-8")  # every part stands on its own
    assert stream.text == "".join(parts)
    return stream.text, stream


@given(st.lists(st.integers(0, BPE.vocab_size - 1), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_tokens_give_the_decoded_text(tokens: list[int]) -> None:
    assert run(tokens)[0] == BPE.decode(tokens)


@given(st.lists(st.integers(0, SPM.vocab_size - 1), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_tokens_of_spm(tokens: list[int]) -> None:
    raw = b"".join(SPM.token_bytes(token) for token in tokens).decode("utf-8", "replace")
    assert run(tokens, tokenizer=SPM)[0] == raw
    assert run(tokens, tokenizer=SPM, at_start=True)[0] == raw.removeprefix(" ")


@given(st.text("abx\n€", max_size=30), st.lists(st.text("abx\n€", min_size=1, max_size=5), min_size=1, max_size=3))
@example("aab", ["ab"])
@example("ab€", ["b€x", "ab€xx"])
@settings(max_examples=500, deadline=None)
def test_stop_texts(text: str, stops: list[str]) -> None:
    """The text ends where the first stop text begins, however it was cut into tokens (here: bytes)."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    tokens = [BPE.id_of(BPE.vocabulary.tokens[i]) for byte in text.encode() for i in [_byte_id(byte)]]
    shown, stream = run(tokens, tuple(stops))
    # A shorter stop text may complete earlier than one that began before it; both end the reply.
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        assert shown == text
        assert stream.stopped is None
    else:
        heard = text[: min(ends)]
        begins = [heard.find(stop) for stop in stops if stop in heard]
        assert shown == heard[: min(begins)]
        assert stream.stopped in stops


def _byte_id(byte: int) -> int:
    return next(i for i in range(256) if BPE.token_bytes(i) == bytes((byte,)))


def test_text_comes_as_soon_as_it_is_sure() -> None:
    stream = TextStream(BPE, ["</end>"])
    out = [stream.push(_byte_id(byte)) for byte in b"a</enx</end>zz"]
    assert out == ["a", "", "", "", "", "</enx", "", "", "", "", "", "", "", ""]
    assert stream.stopped == "</end>"
    assert stream.flush() == ""
    assert stream.text == "a</enx"


def test_incomplete_character_is_held_back() -> None:
    stream = TextStream(BPE)
    assert [stream.push(_byte_id(byte)) for byte in "é€".encode()] == ["", "é", "", "", "€"]
    stream.push(_byte_id(0xE2))
    assert stream.flush() == "\ufffd"


def test_special_tokens_are_not_shown_but_can_stop() -> None:
    hello = BPE.encode("hello")
    assert run([*hello, END, *hello])[0] == "hellohello"
    shown, stream = run([*hello, END, *hello], ("<|im_end|>",))
    assert (shown, stream.stopped) == ("hello", "<|im_end|>")
    shown, stream = run([*hello, _byte_id(0xE2), END], ("<|im_end|>",))
    assert shown == "hello\ufffd"


@pytest.mark.parametrize("stop", ["text", [""], [3]])
def test_stop_must_be_a_list_of_texts(stop) -> None:
    with pytest.raises(ValueError, match="stop"):
        TextStream(BPE, stop)


def test_cost_per_token() -> None:
    tokens = BPE.encode("hello world, this is a line of text.\n" * 50)
    best = 1.0
    for _ in range(5):
        stream = TextStream(BPE, ["</end>", "User:", "\n\n\n"])
        began = time.perf_counter()
        for token in tokens:
            stream.push(token)
        best = min(best, (time.perf_counter() - began) / len(tokens))
    assert best < 10e-6, f"{best * 1e6:.1f} microseconds"
