"""The shipped model: there, small, described, and able to answer a greeting and stop."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import wattwise.builtin as builtin
from wattwise.store import resolve_model
from wattwise_devices.errors import LoadError

SIZE_LIMIT_BYTES = 32 * 2**20  # of all shipped files together


def shipped_names() -> list[str]:
    """The built-in models of this package: always `builtin`, and its draft where one is shipped."""
    return [name for name in builtin.BUILTIN_MODELS if name in _family()]


def _family() -> dict:
    return json.loads((Path(builtin.__file__).parent / "family.json").read_text())


def test_the_files_are_small() -> None:
    sizes = [resolve_model(name).stat().st_size for name in shipped_names()]
    assert min(sizes) > 2**19
    assert sum(sizes) < SIZE_LIMIT_BYTES


def test_the_card_says_what_it_is_and_credits_every_source() -> None:
    card = builtin.builtin_card()
    for word in (*(row["name"] for row in _family().values()), "its per byte", "seed 0", "## Limits", "Apache-2.0"):
        assert word in card
    for repository in ("jfainberg/self_dialogue_corpus", "alexa/Topical-Chat", "gusjengis/toy-RNN", "GITenberg"):
        assert repository in card


def test_a_missing_file_is_a_load_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_MODEL", "not-there.gguf")
    with pytest.raises(LoadError, match="installation is incomplete"):
        builtin.builtin_model_path()


def test_a_missing_draft_is_a_load_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_DRAFT", "not-there.gguf")
    with pytest.raises(LoadError, match=r"not-there\.gguf is not at"):
        resolve_model("builtin-draft")


@pytest.mark.parametrize("model", builtin.BUILTIN_MODELS)
def test_the_file_names_itself_its_licence_its_template_and_both_ends(model: str) -> None:
    from wattwise_runtimes.formats.gguf import read_gguf
    from wattwise_runtimes.formats.gguf_spec import spec_from_gguf

    if model not in shipped_names():
        pytest.skip("this package ships no draft yet")
    row = builtin.shipped(model)
    path = resolve_model(model)
    file = read_gguf(path)
    spec = spec_from_gguf(file)
    card = builtin.builtin_card()
    assert file.fields["general.name"] == row.name
    assert {"cc-by-sa-4.0": "CC BY-SA 4.0", "apache-2.0": "Apache-2.0"}[file.fields["general.license"]] in card
    tokens = file.fields["tokenizer.ggml.tokens"]
    assert {tokens[token] for token in spec.eos_ids} == {"<|im_end|>", "<|endoftext|>"}
    assert not spec.add_bos
    assert (row.bytes, row.parameters) == (path.stat().st_size, spec.parameters())
    assert f"{row.parameters:,}" in card
    certificate = json.loads(path.with_name(path.name + ".certificate.json").read_text())
    assert certificate["written_files"][0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_person_is_told_names_the_model_and_its_size() -> None:
    row = builtin.shipped()
    assert row.name in builtin.builtin_info()
    assert f"{row.parameters / 1e6:.1f} million parameters" in builtin.builtin_info()


def test_the_draft_has_the_models_tokens() -> None:
    if "builtin-draft" not in shipped_names():
        pytest.skip("this package ships no draft yet")
    from wattwise_runtimes.formats.gguf import read_gguf

    tokens = [read_gguf(resolve_model(name)).fields["tokenizer.ggml.tokens"] for name in builtin.BUILTIN_MODELS]
    assert tokens[0] == tokens[1]


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
