"""A tokenizer in the form of Gemma's: BPE with byte fallback, runs of blanks as user-defined tokens, no prefix."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from text.llama_vocab import llama_vocabulary, write_vocabulary
from wattwise_runtimes.text.sources import load_tokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
RUNS = ["\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<h1>"]
NORMAL = [*"▁abcehlo<>st_1nd\t", "▁a", "he", "ll", "hell", "hello", "▁hello", "ab", "▁ab"]
MERGES = [
    ("\n", "\n"), ("\n", "\n\n"), ("\n\n", "\n"), ("▁", "▁"), ("▁", "▁▁"), ("▁▁", "▁"), ("▁▁", "▁▁"), ("▁", "▁▁▁"),
    ("▁▁▁", "▁"), ("▁", "a"), ("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("a", "b"),
    ("▁a", "b"), ("▁", "ab"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokens = [*SPECIAL, *RUNS, *(f"<0x{byte:02X}>" for byte in range(256)), *NORMAL]
    added = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": text in SPECIAL}
        for i, text in enumerate([*SPECIAL, *RUNS])
    ]  # fmt: skip
    data = {
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True,
            "vocab": {text: i for i, text in enumerate(tokens)}, "merges": [list(pair) for pair in MERGES],
        },
    }  # fmt: skip
    path = tmp_path_factory.mktemp("gemma")
    (path / "tokenizer.json").write_text(json.dumps(data))
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"}))
    return path


def texts(count: int) -> list[str]:
    rng = random.Random(1)
    parts = [*"abchello <>st_1\n\t日é", "  ", "\n\n", "<start_of_turn>", "<h1>", "hello", " ab"]
    return ["".join(rng.choices(parts, k=rng.randint(0, 25))) for _ in range(count)]


def test_as_its_own_library_reads_it(folder) -> None:
    from tokenizers import Tokenizer as Library

    theirs, ours = Library.from_file(str(folder / "tokenizer.json")), load_tokenizer(folder)
    for text in [*texts(1000), "▁▁", "a▁▁b"]:
        assert ours.encode(text, parse_special=True) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode("a", bos=True)[0] == 2
    assert ours.eog_ids == {1, 5}
    assert ours.decode(ours.encode("hello  \n ab   x")) == "hello  \n ab   x"


@pytest.mark.llama
def test_as_llama_cpp_reads_it(folder, tmp_path) -> None:
    """From GGUF we read what llama.cpp reads. Runs of blanks beyond the longest token are cut there from the front
    (as SentencePiece does), by Hugging Face's library in the order of merges; all else is the same."""
    pytest.importorskip("llama_cpp")
    source = load_tokenizer(folder)
    path = write_vocabulary(source.vocabulary, tmp_path / "v.gguf")
    ours = load_tokenizer(path)
    with llama_vocabulary(path) as theirs:
        for text in texts(1000):
            ids = ours.encode(text, parse_special=True)
            assert ids == theirs.encode(text, parse_special=True)
            if " " * 5 not in text and "\n" * 4 not in text:
                assert ids == source.encode(text, parse_special=True)
