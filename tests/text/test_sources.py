"""Vocabularies from files: against the libraries that own the formats, and what is refused."""

from __future__ import annotations

import base64
import copy
import json
import random
import struct
from pathlib import Path

import pytest

from support.data import DATA, needs_data
from text.tiny import byte_level, spm
from wattwise_devices.errors import CorruptArtifact, Error, LoadError, UnsupportedArchitecture
from wattwise_runtimes.text.rank_file import merges_from_ranks
from wattwise_runtimes.text.sources import load_tokenizer, load_vocabulary
from wattwise_runtimes.text.tokenizer import Tokenizer

ALPHABET = [*"abcXYZ  \n\t'.,!?019-_<>|éüçÀ日本語한국اไ😀½²\u00a0\r", "e\u0301", "'ll", "<s>", "▁", "<0x0A>"]


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(ALPHABET, k=rng.randint(0, 40))) for _ in range(count)]


def write_folder(folder: Path, tokenizer: Tokenizer, **config) -> dict:
    """tokenizer.json and tokenizer_config.json of a small tokenizer; the JSON for further changes."""
    data = json.loads(tokenizer.to_json())
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return data


# --- against the libraries


@needs_data
@pytest.mark.parametrize(
    "name", ["tokenizers/llama2", "tokenizers/smollm2", "models/stories3M-hf", "models/stories260K-hf"]
)
def test_tokenizer_json_as_its_own_library_reads_it(name) -> None:
    from tokenizers import Tokenizer as Library

    theirs = Library.from_file(str(DATA / name / "tokenizer.json"))
    ours = load_tokenizer(DATA / name)
    words = (DATA / "text" / "wiki.test.raw").read_text()[:60_000].split(" ")
    samples = texts(400) + [" ".join(words[i : i + 30]) for i in range(0, 3000, 30)]
    for text in samples:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, parse_special=True) == ids
        if "\ufffd" not in theirs.decode(ids):
            assert ours.decode(ids) == theirs.decode(ids)


@needs_data
def test_sentencepiece_model_as_sentencepiece_reads_it() -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    path = DATA / "tokenizers" / "llama2" / "tokenizer.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = load_tokenizer(path)
    size = theirs.get_piece_size()
    assert list(ours.vocabulary.tokens) == [theirs.id_to_piece(i) for i in range(size)]
    assert ours.vocabulary.scores == pytest.approx([theirs.get_score(i) for i in range(size)])
    assert (ours.bos_id, ours.eos_id, ours.vocabulary.unk_id) == (theirs.bos_id(), theirs.eos_id(), theirs.unk_id())
    for text in texts(500, seed=1):
        assert ours.encode(text) == theirs.encode(text)


def test_small_sentencepiece_models(tmp_path) -> None:
    """Freshly trained ones, with user-defined pieces; unigram and normalising ones are refused by name."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("\n".join(f"the cat {i} sat on the mat, says {i * 7} éa" for i in range(200)))

    def train(name: str, **options) -> Path:
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "text"), model_prefix=str(tmp_path / name), vocab_size=330, byte_fallback=True,
            minloglevel=2, **{"model_type": "bpe", "normalization_rule_name": "identity",
                              "remove_extra_whitespaces": False, **options},
        )  # fmt: skip
        return tmp_path / f"{name}.model"

    for name, options in {
        "plain": {},
        "bare": {"add_dummy_prefix": False},
        "user": {"user_defined_symbols": ["<sep>"], "add_dummy_prefix": False},
    }.items():
        path = train(name, **options)
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
        ours = load_tokenizer(path)
        for text in ("the cat", "  the  mat", "", "x<sep>y", "日 é", "the<s>", "saysays\n"):
            assert ours.encode(text) == theirs.encode(text), (name, text)
    for name, options in {
        "unigram": {"model_type": "unigram"},
        "table": {"normalization_rule_name": "nmt_nfkc"},
        "repeated": {"remove_extra_whitespaces": True},
    }.items():
        with pytest.raises(UnsupportedArchitecture, match=name):
            load_vocabulary(train(name, **options))


@needs_data
@pytest.mark.slow
def test_rank_file_as_tiktoken_reads_it() -> None:
    tiktoken = pytest.importorskip("tiktoken")
    lines = (DATA / "tokenizers" / "llama3" / "tokenizer.model").read_bytes().splitlines()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    theirs = tiktoken.Encoding("llama3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    ours = load_tokenizer(DATA / "tokenizers" / "llama3")
    for text in texts(1500, seed=2):
        assert ours.encode(text) == theirs.encode_ordinary(text)


def test_merges_from_ranks() -> None:
    ranks = {token: i for i, token in enumerate([b"a", b"b", b"ab", b"ba", b"aba"])}
    assert merges_from_ranks(ranks) == ["a b", "b a", "a ba", "ab a"]


# --- the files around a vocabulary


def test_folder_settings(tmp_path) -> None:
    write_folder(
        tmp_path, Tokenizer(byte_level(add_bos=True)), bos_token={"content": "<|im_start|>"}, eos_token="<|im_end|>",
        pad_token="<|endoftext|>", add_bos_token=False, model_max_length=10**30,
        chat_template=[{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}],
    )  # fmt: skip
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [268, 266]}')
    ours = load_tokenizer(tmp_path)
    v = ours.vocabulary
    assert (v.bos_id, v.eos_id, v.pad_id, v.eog_ids) == (267, 268, 266, (266,))
    assert ours.eog_ids == {266, 268}
    assert not ours.add_bos
    assert (v.chat_template, v.chat_templates) == ("A", (("tool_use", "B"),))
    (tmp_path / "chat_template.jinja").write_text("C")
    (tmp_path / "chat_templates").mkdir()
    (tmp_path / "chat_templates" / "rag.jinja").write_text("D")
    v = load_vocabulary(tmp_path)
    assert (v.chat_template, v.chat_templates) == ("C", (("rag", "D"), ("tool_use", "B")))


def test_added_tokens_beside_the_vocabulary(tmp_path) -> None:
    write_folder(
        tmp_path, Tokenizer(byte_level()),
        added_tokens_decoder={
            "269": {"content": "<think>", "special": False}, "272": {"content": "<x>", "special": True},
        },
    )  # fmt: skip
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == 273
    assert ours.encode("<think><x>", parse_special=True) == [269, 272]
    assert ours.decode([269, 272]) == "<think>"
    assert ours.encode("<think>") == [269]


def test_special_tokens_map_is_read_too(tmp_path) -> None:
    write_folder(tmp_path, Tokenizer(byte_level(bos_id=None, eos_id=None)))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    assert load_vocabulary(tmp_path).eos_id == 268


@pytest.mark.parametrize(
    "pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "gpt-4o", "tekken", "deepseek-r1-qwen", "qwen35"]
)
def test_pre_tokenizers_are_recognised(pre, tmp_path) -> None:
    write_folder(tmp_path, Tokenizer(byte_level(pre)))
    assert load_vocabulary(tmp_path).pre == pre


def test_spellings_of_pre_tokenizers(tmp_path) -> None:
    data = write_folder(tmp_path, Tokenizer(byte_level("qwen2")))
    regex = data["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    byte_step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    for steps, expected in (
        (
            [
                {"type": "Split", "pattern": regex, "behavior": "Removed", "invert": True},
                {**byte_step, "use_regex": False},
            ],
            "qwen2",
        ),
        ([{"type": "Digits", "individual_digits": True}, byte_step], None),
    ):
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))
        if expected:
            assert load_vocabulary(tmp_path).pre == expected
        else:
            with pytest.raises(UnsupportedArchitecture, match="not known here"):  # digits first, with NFC
                load_vocabulary(tmp_path)


@pytest.mark.parametrize("rule", ["each", "each-missing", "first-missing"])
@pytest.mark.parametrize("prefix", [True, False])
def test_space_rules_are_recognised(rule, prefix, tmp_path) -> None:
    original = Tokenizer(spm(prefix_rule=rule, add_space_prefix=prefix))
    write_folder(tmp_path, original, bos_token="<s>", eos_token="</s>")
    ours = load_tokenizer(tmp_path)
    assert ours.vocabulary.add_space_prefix == prefix
    for text in (" a</s>b", "abcabc", "é  a"):
        assert ours.encode(text, parse_special=True, bos=True) == original.encode(text, parse_special=True, bos=True)


# --- refusals


def change(data: dict, path: str, value) -> dict:
    data = copy.deepcopy(data)
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[key]
    place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "error", "match"),
    [
        ("model.type", "Unigram", Error, "model"),
        ("model.type", "WordPiece", UnsupportedArchitecture, "WordPiece"),
        ("model.dropout", 0.1, UnsupportedArchitecture, "dropout"),
        ("model.end_of_word_suffix", "</w>", UnsupportedArchitecture, "end_of_word_suffix"),
        ("model.merges", [["h", "zz"]], CorruptArtifact, "merge"),
        ("model.merges", [["h"]], CorruptArtifact, "merge"),
        ("model.vocab", {"a": 0, "b": 0}, CorruptArtifact, "id"),
        ("model.vocab", {"a": -1}, CorruptArtifact, "id"),
        ("model", {"type": "BPE", "vocab": {"a": 3_000_000}, "merges": []}, CorruptArtifact, "highest token id"),
        ("added_tokens", [{"id": 5, "content": "zz"}], CorruptArtifact, "added token"),
        ("added_tokens", [{"id": 269, "content": "zz", "single_word": True}], UnsupportedArchitecture, "single_word"),
        ("added_tokens", [{"content": "zz"}], CorruptArtifact, "added"),
        ("normalizer", {"type": "Lowercase"}, UnsupportedArchitecture, "Lowercase"),
        ("pre_tokenizer", {"type": "Whitespace"}, UnsupportedArchitecture, "Whitespace"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, UnsupportedArchitecture, "add_prefix_space"),
        ("post_processor", {"type": "BertProcessing"}, UnsupportedArchitecture, "BertProcessing"),
        ("post_processor", {"type": "TemplateProcessing", "special_tokens": 3}, CorruptArtifact, "post_processor"),
    ],
)
def test_tokenizer_json_is_refused(path, value, error, match, tmp_path) -> None:
    data = write_folder(tmp_path, Tokenizer(byte_level()))
    (tmp_path / "tokenizer.json").write_text(json.dumps(change(data, path, value)))
    with pytest.raises(error, match=match):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"bos_token": "<none>"}, "bos_token is '<none>'"),
        ({"add_bos_token": "yes"}, "add_bos_token"),
        ({"added_tokens_decoder": {"-3": {"content": "x"}}}, "added_tokens_decoder"),
        ({"added_tokens_decoder": {"3": {"content": "x"}}}, "added token 'x'"),
        ({"added_tokens_decoder": {"99999999": {"content": "zz"}}}, "highest token id"),
        ({"chat_template": 3}, "chat_template"),
        ({"chat_template": [{"name": "x"}]}, "chat_template"),
    ],
)
def test_settings_are_refused(config, match, tmp_path) -> None:
    write_folder(tmp_path, Tokenizer(byte_level()), **config)
    with pytest.raises(CorruptArtifact, match=match):
        load_tokenizer(tmp_path)


def test_folder_without_a_tokenizer(tmp_path) -> None:
    with pytest.raises(LoadError, match="no tokenizer"):
        load_vocabulary(tmp_path)
    with pytest.raises(LoadError, match="does not exist"):
        load_vocabulary(tmp_path / "x.gguf")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(LoadError, match=r"merges\.txt"):
        load_vocabulary(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na\n")
    with pytest.raises(CorruptArtifact, match="line 2"):
        load_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "MarsTokenizer"}')
    with pytest.raises(UnsupportedArchitecture, match="MarsTokenizer"):
        load_vocabulary(tmp_path)


def llama2c_file(pieces: list[tuple[float, bytes]]) -> bytes:
    body = b"".join(struct.pack("<fi", score, len(piece)) + piece for score, piece in pieces)
    return struct.pack("<i", max(len(piece) for _, piece in pieces)) + body


GOOD_PIECES = [(0.0, b"<unk>"), (0.0, b"<s>"), (0.0, b"</s>"), *((0.0, bytes((b,))) for b in range(256)), (-1.0, b" a")]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\0\0", "file size"),
        (llama2c_file(GOOD_PIECES)[:-1], "length of token 259"),
        (llama2c_file(GOOD_PIECES)[:-5], "token 259"),
        (llama2c_file(GOOD_PIECES[:100]), "number of tokens is 100"),
        (llama2c_file([*GOOD_PIECES[:5], (0.0, b"zz"), *GOOD_PIECES[6:]]), "token 5"),
        (llama2c_file([*GOOD_PIECES, (0.0, b"\xff")]), "UTF-8"),
        (struct.pack("<i", 5) + struct.pack("<fi", 0, 1 << 30), "length of token 0 is 1073741824"),
        (struct.pack("<i", 5) + struct.pack("<fi", 0, -1), "length of token 0 is -1"),
    ],
)
def test_tokenizer_bin_is_refused(data, match, tmp_path) -> None:
    (tmp_path / "tok.bin").write_bytes(data)
    with pytest.raises(CorruptArtifact, match=match):
        load_vocabulary(tmp_path / "tok.bin")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "number of pieces"),
        (b"\x0a\xff\xff\xff\xff\x0f", "length of field 1"),
        (b"\x0a", "varints"),
        (b"\xff" * 11, "ten bytes"),
        (b"\x0b", "wire type"),
        (b"\x00\x00", "field number"),
        (b"\x08\x01", "wire type of field 1"),
        (b"\x0a\x02\x0a\x00\x12\x02\x18\x01", "unigram"),
        (b"\x0a\x03\x0a\x01\xff", "UTF-8"),
        (b"\x0a\x05\x0a\x01a\x18\x09", "type of piece 0 is 9"),
    ],
)
def test_sentencepiece_model_is_refused(data, match, tmp_path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises((CorruptArtifact, UnsupportedArchitecture), match=match):
        load_vocabulary(tmp_path / "tokenizer.model")


def test_rank_file_is_refused(tmp_path) -> None:
    path = tmp_path / "tokenizer.model"
    lines = [f"{base64.b64encode(bytes((b,))).decode()} {b}" for b in range(256)]
    path.write_text("\n".join(lines))
    with pytest.raises(UnsupportedArchitecture, match="added_tokens_decoder"):
        load_vocabulary(path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"256": {"content": "<|begin_of_text|>", "special": True}}})
    )
    path.write_text("\n".join(lines))
    assert load_tokenizer(path).encode("é") == [0xC3, 0xA9]
    for change_, match in (
        ([*lines, "YWI= 300"], "rank on line 257"),
        ([*lines, "!!!! 256"], "line 257"),
        (lines[1:], "rank"),
    ):
        path.write_text("\n".join(["AA== 0", *change_[1:]] if change_ is not lines[1:] else change_))
        with pytest.raises((CorruptArtifact, UnsupportedArchitecture), match=match):
            load_vocabulary(path)


# --- anything at all


def mutated(value, rng: random.Random):
    """A copy of JSON data with one value changed."""
    value = copy.deepcopy(value)
    place, key = None, None
    inner = value
    while isinstance(inner, (dict, list)) and inner and (place is None or rng.random() < 0.8):
        place = inner
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        inner = inner[key]
    place[key] = rng.choice(
        [None, True, -1, 0, 3, 1e9, "", "x", [], {}, [[]], {"type": "Sequence"}, "\ud7ff", [1, "a"]]
    )
    return value


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_fuzzed_folders_give_only_typed_errors(kind, tmp_path) -> None:
    rng = random.Random(9)
    original = Tokenizer(byte_level("qwen2", add_bos=True) if kind == "bpe" else spm())
    config = {
        "bos_token": original.token_text(original.bos_id or 0), "eos_token": original.token_text(original.eos_id),
        "added_tokens_decoder": {"280": {"content": "<x>", "special": True, "lstrip": False}}, "add_bos_token": True,
        "chat_template": [{"name": "default", "template": "x"}],
    }  # fmt: skip
    data = write_folder(tmp_path, original)
    # Without most of the vocabulary the mutations meet the structure more often.
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(300):
        (tmp_path / "tokenizer.json").write_text(json.dumps(mutated(data, rng)))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(mutated(config, rng)))
        try:
            load_tokenizer(tmp_path).encode("hello <|im_end|> ab\n")
            outcomes["loaded"] += 1
        except Error:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 25


@pytest.mark.parametrize("name", ["tok.bin", "tokenizer.model"])
def test_fuzzed_binary_files_give_only_typed_errors(name, tmp_path) -> None:
    rng = random.Random(10)
    if name == "tok.bin":
        good = llama2c_file(GOOD_PIECES)
    else:
        piece = b"\x0a\x0e\x0a\x07<0x0A>x\x15\x00\x00\x00\x00"
        good = piece * 20 + b"\x12\x02\x18\x02\x1a\x04\x20\x00\x18\x01"
    for _ in range(400):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / name).write_bytes(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]))
        try:
            load_tokenizer(tmp_path / name).encode("a b")
        except Error:
            continue
