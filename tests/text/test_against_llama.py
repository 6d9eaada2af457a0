"""llama.cpp's tokenization of the vocabularies we write, text by text."""

from __future__ import annotations

import dataclasses
import random
import unicodedata

import pytest

from support.data import DATA, needs_data
from text.llama_vocab import llama_vocabulary, write_vocabulary
from text.tiny import byte_level, spm
from wattwise_runtimes.text.pretokenizers import PRE_TOKENIZERS
from wattwise_runtimes.text.sources import load_tokenizer
from wattwise_runtimes.text.tokenizer import Tokenizer

pytestmark = pytest.mark.llama
pytest.importorskip("llama_cpp")

ALPHABET = [
    *"abcXYZ  \n\t'.,!?0123456789-_#$<>|éüñßčçÀ日本語한국어اعไทย😀👧½²Ⅷ\u00a0\u200b\u3000\r",
    "'ll", "'S", " we'VE", "<s>", "<|im_end|>", "  ", "\n\n", "▁", "<0x0A>", "camelCase", "HTTPServer", "1234567",
]  # fmt: skip
# llama.cpp counts combining marks as no part of a word here; the models' own files do, and so do we.
MARKS_DIFFER = {name for name, pre in PRE_TOKENIZERS.items() if r"\p{M}]*" in pre.patterns[0]}


def texts(count: int, seed: int, marks: bool = True) -> list[str]:
    rng = random.Random(seed)
    alphabet = [*ALPHABET, "e\u0301", "ั", "ब्"] if marks else ALPHABET
    return ["".join(rng.choices(alphabet, k=rng.randint(1, 30))) for _ in range(count)]


def agree(tokenizer: Tokenizer, path, samples: list[str], *, specials: bool) -> None:
    with llama_vocabulary(write_vocabulary(tokenizer.vocabulary, path)) as theirs:
        for text in samples:
            assert tokenizer.encode(text) == theirs.encode(text), text
            if specials:
                ids = theirs.encode(text, parse_special=True, bos=True)
                assert tokenizer.encode(text, parse_special=True, bos=True) == ids, text
        size = tokenizer.vocab_size
        ordinary = [i for i in range(0, size, max(1, size // 2000)) if not tokenizer.is_special(i)]
        if specials:
            assert [tokenizer.token_bytes(i) for i in ordinary] == [theirs.piece(i) for i in ordinary]
            assert tokenizer.eog_ids <= theirs.ends(size)


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer(pre, tmp_path) -> None:
    samples = texts(60, seed=1, marks=pre not in MARKS_DIFFER)
    if PRE_TOKENIZERS[pre].nfc:  # llama.cpp does not compose characters; the models' own files do
        samples = [unicodedata.normalize("NFC", text) for text in samples]
    agree(Tokenizer(byte_level(pre)), tmp_path / "v.gguf", samples, specials=True)


@pytest.mark.parametrize("prefix", [True, False])
def test_small_spm(prefix, tmp_path) -> None:
    rng = random.Random(2)
    samples = ["".join(rng.choices([*"aaabbbccé <s>▁日", "</s>"], k=rng.randint(0, 20))) for _ in range(500)]
    # llama.cpp would build `<s>` from `<s` and `>`, so those pieces stay out here.
    pieces = ("▁", "a", "b", "c", "é", "▁a", "ab", "bc", "▁ab", "abc", "aa", "aaa", "bb", "abcabc", "<", ">")
    agree(Tokenizer(spm(pieces, add_space_prefix=prefix)), tmp_path / "v.gguf", samples, specials=True)


@needs_data
@pytest.mark.parametrize(
    ("name", "specials"),
    [
        ("tokenizers/llama2/tokenizer.json", True),
        ("tokenizers/llama2/tokenizer.model", True),
        ("models/stories3M-hf", True),
        ("models/stories260K-hf", True),
        ("models/stories3M/tok4096.bin", True),
        ("tokenizers/smollm2", True),
        ("tokenizers/gpt2", True),
        pytest.param("tokenizers/llama3", True, marks=pytest.mark.slow),
        # llama.cpp takes its ordinary token `</s>` for a control token:
        pytest.param("tokenizers/qwen2", False, marks=pytest.mark.slow),
    ],
)
def test_real_vocabularies(name, specials, tmp_path) -> None:
    samples = texts(300, seed=3)
    if "qwen2" in name:
        samples = [unicodedata.normalize("NFC", text) for text in samples]
    words = (DATA / "text" / "wiki.test.raw").read_text()[:100_000].split(" ")
    samples += [" ".join(words[i : i + 40]) for i in range(0, 2000, 40)]
    agree(load_tokenizer(DATA / name), tmp_path / "v.gguf", samples, specials=specials)


def test_phi3_by_name(tmp_path) -> None:
    """llama.cpp knows by the model's name that Phi-3's special tokens swallow the blanks after them."""
    pieces = ("▁", "a", "b", "\n", "<|end|>", "<|user|>", "<|endoftext|>")
    plain = spm(pieces)
    kinds = tuple(3 if text.startswith("<|") else kind for text, kind in zip(plain.tokens, plain.kinds, strict=True))
    path = write_vocabulary(dataclasses.replace(plain, kinds=kinds), tmp_path / "v.gguf", name="Phi-3 Mini")
    ours = load_tokenizer(path)
    with llama_vocabulary(path) as theirs:
        for text in ("<|user|>\n  a<|end|>\n<s> b</s> a", "a <|end|>  <|user|>", "<s>\n<unk> a"):
            assert ours.encode(text, parse_special=True) == theirs.encode(text, parse_special=True)


@needs_data
def test_padding_to_the_embedding(tmp_path) -> None:
    """Rows of the embedding beyond the vocabulary become unused tokens that llama.cpp accepts."""
    vocabulary = load_tokenizer(DATA / "models" / "stories260K-hf").vocabulary
    count = len(vocabulary.tokens)
    padded = dataclasses.replace(
        vocabulary,
        tokens=(*vocabulary.tokens, *(f"[PAD{i}]" for i in range(count, 520))),
        kinds=(*vocabulary.kinds, *([5] * (520 - count))),
        scores=(*vocabulary.scores, *([0.0] * (520 - count))),
    )
    agree(Tokenizer(padded), tmp_path / "v.gguf", texts(50, seed=4), specials=True)
