"""Vocabulary to GGUF metadata and back, and what is refused on the way in."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest

from text.llama_vocab import write_vocabulary
from text.tiny import byte_level, spm
from wattwise_devices.errors import ConvertError, CorruptArtifact, Error, UnsupportedArchitecture
from wattwise_runtimes.text.backend import merges_from_scores
from wattwise_runtimes.text.gguf_vocab import gguf_fields, vocabulary_from_gguf
from wattwise_runtimes.text.sources import load_vocabulary
from wattwise_runtimes.text.tokenizer import Tokenizer
from wattwise_runtimes.text.vocabulary import USER_DEFINED

FULL = spm(
    chat_template="{{ 1 }}", chat_templates=(("tool_use", "{{ 2 }}"),), eot_id=1, pad_id=0, prefix_rule="first-missing",
    eog_ids=(1, 7), rstrip_ids=frozenset({2}), lstrip_ids=frozenset({1, 2}), add_eos=True,
)  # fmt: skip


@pytest.mark.parametrize("vocabulary", [FULL, spm(), byte_level(), byte_level("smollm", add_bos=True)])
def test_round_trip_through_a_file(vocabulary, tmp_path) -> None:
    assert load_vocabulary(write_vocabulary(vocabulary, tmp_path / "v.gguf")) == vocabulary


def test_a_second_end_token_is_told_to_llama_cpp() -> None:
    assert gguf_fields(spm(eog_ids=(1,)))["tokenizer.ggml.eot_token_id"] == 1


def test_padding() -> None:
    fields = gguf_fields(spm(), size=300)
    assert len(fields["tokenizer.ggml.tokens"]) == len(fields["tokenizer.ggml.token_type"]) == 300
    assert fields["tokenizer.ggml.tokens"][-1] == "[PAD299]"
    assert fields["tokenizer.ggml.token_type"][-1] == 5
    with pytest.raises(CorruptArtifact, match="embedding"):
        gguf_fields(spm(), size=100)


def test_user_defined_spaces_are_spelled_as_typed() -> None:
    vocabulary = spm(kinds=(*spm().kinds[:259], USER_DEFINED, *spm().kinds[260:]))
    assert gguf_fields(vocabulary)["tokenizer.ggml.tokens"][259] == " "


def test_merges_that_scores_cannot_express() -> None:
    full = tuple(" ".join(pair) for pair in merges_from_scores(spm()))
    assert "tokenizer.ggml.merges" not in gguf_fields(spm(merges=full))
    with pytest.raises(ConvertError, match=f"lists {len(full) - 1} merges where its tokens allow {len(full)}"):
        gguf_fields(spm(merges=full[:-1]))


P = "tokenizer.ggml."


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({P + "model": "t5"}, UnsupportedArchitecture, "'t5'"),
        ({P + "model": 7}, CorruptArtifact, "tokenizer.ggml.model is 7"),
        ({P + "model": None}, CorruptArtifact, "tokenizer.ggml.model is None"),
        ({P + "tokens": np.arange(3)}, CorruptArtifact, "list of strings"),
        ({P + "tokens": []}, CorruptArtifact, "list of strings"),
        ({P + "scores": np.zeros(5, np.float32)}, CorruptArtifact, "length of tokenizer.ggml.scores is 5"),
        ({P + "scores": None}, CorruptArtifact, "tokenizer.ggml.scores is None"),
        ({P + "token_type": ["a"]}, CorruptArtifact, "array of numbers"),
        ({P + "bos_token_id": 100_000}, CorruptArtifact, "bos_token_id is 100000"),
        ({P + "bos_token_id": True}, CorruptArtifact, "bos_token_id is True"),
        ({P + "eos_token_id": -1}, CorruptArtifact, "eos_token_id is -1"),
        ({P + "add_bos_token": 1}, CorruptArtifact, "add_bos_token is 1"),
        ({"tokenizer.chat_template": 3}, CorruptArtifact, "tokenizer.chat_template"),
        ({"wattwise.prefix_rule": "never"}, CorruptArtifact, "prefix_rule"),
        ({"wattwise.eog_ids": [1]}, CorruptArtifact, "array of ids"),
    ],
)
def test_broken_metadata_is_refused(change, error, match) -> None:
    fields = gguf_fields(spm()) | change
    fields = {key: value for key, value in fields.items() if value is not None}
    with pytest.raises(error, match=match):
        vocabulary_from_gguf(fields, "file.gguf")


def test_byte_level_needs_merges() -> None:
    fields = gguf_fields(byte_level())
    del fields[P + "merges"]
    with pytest.raises(CorruptArtifact, match="merges"):
        vocabulary_from_gguf(fields)


def test_fuzzed_metadata_gives_only_typed_errors() -> None:
    rng = random.Random(3)
    whole = [None, True, -1, 0, 2**40, 1e9, float("nan"), "", "x", [], ["a"] * 300, np.zeros(300, np.float32)]
    texts = ["", " ", "a", "\0", "<s>", "<0x41>", "▁", "a b", " a", "a ", "\n", "日" * 50]
    good = [gguf_fields(byte_level("qwen2", add_bos=True)), gguf_fields(spm())]
    loaded = 0
    for _ in range(1500):
        fields = dict(rng.choice(good))
        for _ in range(rng.randint(1, 2)):
            key = rng.choice(list(fields))
            value = fields[key]
            if isinstance(value, (list, np.ndarray)) and len(value) and rng.random() < 0.8:
                value = copy.copy(value)
                value[rng.randrange(len(value))] = rng.choice(texts) if isinstance(value, list) else rng.randint(-1, 7)
            else:
                value = rng.choice(whole)
            fields[key] = value
            if value is None:
                del fields[key]
        try:
            tokenizer = Tokenizer(vocabulary_from_gguf(fields))
            tokenizer.decode(tokenizer.encode("hello <s> ab\n  <|im_end|>\0 x", bos=True, parse_special=True))
            loaded += 1
        except Error:
            continue
    assert 100 < loaded < 1400
