"""Published encodings of the vocabularies that the shared data holds."""

from __future__ import annotations

import json
from functools import cache

import pytest

from support.data import DATA, needs_data
from wattwise_runtimes.text.sources import load_tokenizer
from wattwise_runtimes.text.tokenizer import Tokenizer

TOKENIZERS = DATA / "tokenizers"
GGML = TOKENIZERS / "ggml-vocab"

# falcon, mpt, refact, starcoder, command-r and bert-bge have vectors but no vocabulary to run them on.
LLAMA_CPP_VECTORS = [
    ("llama-spm", GGML / "ggml-vocab-llama-spm.gguf"),
    ("llama-spm", TOKENIZERS / "llama2" / "tokenizer.model"),
    ("llama-spm", TOKENIZERS / "llama2" / "tokenizer.json"),
    ("llama-spm", DATA / "models" / "random-llama2-gguf" / "llama-2-tiny-random.gguf"),
    ("gpt-2", GGML / "ggml-vocab-gpt-2.gguf"),
    ("gpt-2", TOKENIZERS / "gpt2"),
    ("qwen2", TOKENIZERS / "qwen2"),
    ("llama-bpe", TOKENIZERS / "llama3"),
]
HF_VECTORS = {
    "distilgpt2": TOKENIZERS / "gpt2",
    "coreml-projects/Llama-2-7b-chat-coreml": TOKENIZERS / "llama2",
    "pcuenq/Llama-3.2-1B-Instruct-tokenizer": TOKENIZERS / "llama3",
}


@cache
def tokenizer(path: str) -> Tokenizer:
    return load_tokenizer(path)


@needs_data
@pytest.mark.parametrize(("name", "path"), LLAMA_CPP_VECTORS, ids=lambda x: getattr(x, "name", x))
def test_llama_cpp_vectors(name, path) -> None:
    cases = (GGML / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = (GGML / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    assert len(cases) == len(expected) == 47
    found = [tokenizer(str(path)).encode(case) for case in cases]
    assert found == [[int(i) for i in line.split()] for line in expected]


@needs_data
@pytest.mark.parametrize("name", HF_VECTORS)
def test_hugging_face_vectors(name) -> None:
    tests = json.loads((TOKENIZERS / "encode-vectors" / "hf_tokenizer_tests.json").read_text())[name]
    ours = tokenizer(str(HF_VECTORS[name]))
    assert len(tests) == 18
    for case in tests:
        ids = case["encoded"]["input_ids"]
        assert ours.encode(case["input"], bos=True, parse_special=True) == ids
        assert ours.decode(ids) == ours.decode(ours.encode(case["input"]))


@needs_data
@pytest.mark.parametrize("name", ["stories260K-hf", "stories3M-hf", "stories260K", "stories3M"])
def test_stories_ids(name) -> None:
    folder = DATA / "models" / name
    paths = [folder] if name.endswith("hf") else sorted(folder.glob("tok*.bin"))
    assert paths
    for path in paths:
        ours = tokenizer(str(path))
        assert ours.encode("Once upon a time", bos=True) == [1, 403, 407, 261, 378]
        assert ours.eog_ids == {1, 2}


@needs_data
@pytest.mark.parametrize(("name", "count"), [("stories260K-hf", 17_231), ("stories3M-hf", 9_081)])
def test_stories_count(name, count) -> None:
    """Number of ids of 50 whole stories, BOS included, as the data's README gives it."""
    text = (DATA / "text" / "tinystories_sample.txt").read_text()
    stories = [piece.strip() for piece in text.split("<|endoftext|>")][10:60]
    ours = tokenizer(str(DATA / "models" / name))
    ids = [ours.encode(story, bos=True) for story in stories]
    assert sum(map(len, ids)) == count
    assert [ours.decode(i) for i in ids] == stories


@needs_data
def test_llama3_merges_are_as_many_as_in_the_published_tokenizer() -> None:
    assert len(tokenizer(str(TOKENIZERS / "llama3")).vocabulary.merges) == 280_147


@needs_data
def test_scores_follow_from_merges() -> None:
    """tokenizer.json has no scores; those derived give llama2.c's order: id 259 + k has -k."""
    vocabulary = tokenizer(str(DATA / "models" / "stories260K-hf")).vocabulary
    listed = tokenizer(str(DATA / "models" / "stories260K" / "tok512.bin")).vocabulary
    merged = [i for i in range(259, 512) if len(vocabulary.tokens[i]) > 1]
    assert [vocabulary.scores[i] for i in merged] == [259.0 - i for i in merged]
    assert [vocabulary.scores[i] for i in merged] == [listed.scores[i] for i in merged]
