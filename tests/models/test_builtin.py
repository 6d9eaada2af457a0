"""The shipped model: there, small, described, and able to answer a greeting and stop."""

from __future__ import annotations

import numpy as np
import pytest
from models.documents import CHAT_TEMPLATE

import wattwise.builtin as builtin
from wattwise_devices.errors import LoadError

SIZE_LIMIT_BYTES = 8 * 2**20


def test_the_file_is_small() -> None:
    size_bytes = builtin.builtin_model_path().stat().st_size
    assert 2**20 < size_bytes < SIZE_LIMIT_BYTES


def test_the_card_says_what_it_is_and_credits_every_source() -> None:
    card = builtin.builtin_card()
    for word in (builtin.BUILTIN_NAME, "Held-out bits per byte", "seed 0", "## Limits", "Apache-2.0"):
        assert word in card
    for repository in (
        "jfainberg/self_dialogue_corpus",
        "alexa/Topical-Chat",
        "gunthercox/chatterbot-corpus",
        "gusjengis/toy-RNN",
        "GITenberg",
    ):
        assert repository in card


def test_a_missing_file_is_a_load_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_MODEL", "not-there.gguf")
    with pytest.raises(LoadError, match="installation is incomplete"):
        builtin.builtin_model_path()


def test_the_file_names_itself_its_licence_its_template_and_both_ends() -> None:
    from wattwise_runtimes.formats.gguf import read_gguf
    from wattwise_runtimes.formats.gguf_spec import spec_from_gguf

    file = read_gguf(builtin.builtin_model_path())
    spec = spec_from_gguf(file)
    assert file.fields["general.name"] == builtin.BUILTIN_NAME
    assert file.fields["general.license"] == "apache-2.0"
    assert spec.chat_template == CHAT_TEMPLATE
    tokens = file.fields["tokenizer.ggml.tokens"]
    assert {tokens[token] for token in spec.eos_ids} == {"<|im_end|>", "<|endoftext|>"}
    assert not spec.add_bos
    assert spec.context == 512
    assert f"{spec.parameters():,} parameters" in builtin.builtin_card()
    assert f"{spec.parameters() / 1e6:.1f} million parameters" in builtin.builtin_info()


@pytest.mark.parametrize("greeting", ["Hi! How are you today?", "Hello!", "What is your name?"])
def test_it_answers_a_greeting_in_plain_english_and_stops_by_itself(greeting: str) -> None:
    from wattwise_runtimes.contracts import Batch, LoadSpec
    from wattwise_runtimes.engines.reference.engine import ReferenceEngine
    from wattwise_runtimes.formats.gguf import read_gguf
    from wattwise_runtimes.formats.gguf_spec import canonical_tensors, spec_from_gguf
    from wattwise_runtimes.text.sources import load_tokenizer

    path = builtin.builtin_model_path()
    file = read_gguf(path)
    spec, tokenizer = spec_from_gguf(file), load_tokenizer(path)
    weights = {name: tensor.read_rows(0, tensor.shape[0]) for name, tensor in canonical_tensors(file, spec).items()}
    engine = ReferenceEngine(spec, weights, LoadSpec(context=128))
    prompt = f"<|im_start|>user\n{greeting}<|im_end|>\n<|im_start|>assistant\n"
    new = tokenizer.encode(prompt, parse_special=True)
    reply: list[int] = []
    while len(reply) < 60:
        logits = engine.forward(Batch(new))
        new = [int(np.argmax(logits[-1]))]
        if new[0] in tokenizer.eog_ids:
            break
        reply += new
    text = tokenizer.decode(reply)
    assert 1 < len(reply) < 60, text  # it said something, and ended
    assert text.isascii() and text[0].isupper() and text[-1] in ".!?"
