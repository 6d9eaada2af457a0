"""The tokenizer's own rules, on small vocabularies: control tokens, bytes, spaces, refusals."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text.tiny import SPECIAL, byte_level, spm
from wattwise_devices.errors import CorruptArtifact, PlanError, UnsupportedArchitecture
from wattwise_runtimes.text.tokenizer import Tokenizer
from wattwise_runtimes.text.vocabulary import CONTROL, USER_DEFINED, unspell

BPE, SPM = Tokenizer(byte_level()), Tokenizer(spm())
anything = st.text(alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("hello wabc<|>s▁ \n")))


@given(anything)
@settings(max_examples=300, deadline=None)
def test_text_survives(text: str) -> None:
    assert BPE.decode(BPE.encode(text)) == text
    assert SPM.decode(SPM.encode(text)) == text.replace("▁", " ")  # SentencePiece cannot tell the two apart


@given(anything, st.sampled_from(SPECIAL), anything)
@settings(max_examples=200, deadline=None)
def test_what_a_person_types_is_never_a_control_token(before: str, special: str, after: str) -> None:
    text = before + special + after
    plain = BPE.encode(text)
    assert not any(BPE.is_special(i) for i in plain)
    assert BPE.decode(plain) == text
    assert BPE.id_of(special) in BPE.encode(text, parse_special=True)


def test_spelled_specials_of_spm() -> None:
    assert SPM.encode("<s>", parse_special=True) == [1]
    assert not {0, 1, 2} & set(SPM.encode("<s></s><unk>"))
    assert SPM.decode(SPM.encode("<s></s>")) == "<s></s>"


def test_a_word_that_is_a_control_token_is_cut_when_merges_are_ignored() -> None:
    """With ignore_merges a whole word is looked up in the vocabulary, where control tokens stand too."""
    ours = Tokenizer(byte_level("llama-bpe", special=("<|endoftext|>", "stopword")))
    control = ours.id_of("stopword")
    assert ours.encode("stopword", parse_special=True) == [control]
    ids = ours.encode("a\nstopword\nstopword")
    assert control not in ids
    assert ours.decode(ids) == "a\nstopword\nstopword"


def test_bos_only_where_the_tokenizer_adds_it() -> None:
    assert SPM.encode("a", bos=True)[0] == 1
    assert SPM.encode("", bos=True) == [1]
    assert BPE.encode("a", bos=True) == BPE.encode("a")
    assert Tokenizer(byte_level(add_bos=True)).encode("a", bos=True) == [266, *BPE.encode("a")]


def test_token_bytes_are_exact() -> None:
    every = [BPE.token_bytes(i) for i in range(256)]
    assert sorted(every) == [bytes((b,)) for b in range(256)]
    assert [SPM.token_bytes(3 + b) for b in range(256)] == [bytes((b,)) for b in range(256)]
    assert SPM.token_bytes(SPM.id_of("▁ab")) == b" ab"
    assert SPM.token_bytes(1) == BPE.token_bytes(BPE.id_of("<|im_end|>")) == b""
    assert unspell("Ġ日") == b" " + "日".encode()
    with pytest.raises(ValueError, match="outside the vocabulary"):
        BPE.token_bytes(len(BPE.vocabulary.tokens))


def test_incomplete_characters_decode_to_replacements() -> None:
    euro = BPE.encode("€")
    assert BPE.decode(euro) == "€"
    assert BPE.decode(euro[:2]) == "\ufffd"
    assert SPM.decode([3 + 0xE2, 3 + 0x82]) == "\ufffd"
    assert BPE.decode(BPE.encode("\ud800")) == "?"  # half of a surrogate pair is not text


def test_special_tokens_in_decoded_text() -> None:
    ids = BPE.encode("hello<|im_end|>", parse_special=True)
    assert BPE.decode(ids) == "hello"
    assert BPE.decode(ids, skip_special=False) == "hello<|im_end|>"


def test_text_that_continues_has_no_space_in_front() -> None:
    assert [SPM.token_text(i) for i in SPM.encode("abc")] == ["▁a", "bc"]
    assert [SPM.token_text(i) for i in SPM.encode("abc", continues=True)] == ["abc"]
    assert SPM.encode(" abc", continues=True) == SPM.encode("abc")


@pytest.mark.parametrize(
    ("rule", "text", "pieces"),
    [
        ("each", "a</s>b", ["▁a", "</s>", "▁", "b"]),
        ("each-missing", "a</s>b", ["▁a", "</s>", "▁", "b"]),
        ("first-missing", "a</s>b", ["▁a", "</s>", "b"]),
        ("each", " a", ["▁", "▁a"]),
        ("each-missing", " a", ["▁a"]),
        ("first-missing", " a", ["▁a"]),
    ],
)
def test_where_the_space_goes(rule, text, pieces) -> None:
    ours = Tokenizer(spm(prefix_rule=rule))
    assert [ours.token_text(i) for i in ours.encode(text, parse_special=True)] == pieces


def test_user_defined_tokens_are_found_in_any_text_and_shown() -> None:
    plain = byte_level()
    kinds = list(plain.kinds)
    kinds[-1] = USER_DEFINED
    ours = Tokenizer(byte_level(kinds=tuple(kinds)))
    assert ours.encode("a<|im_end|>")[-1] == len(kinds) - 1
    assert ours.decode(ours.encode("a<|im_end|>")) == "a<|im_end|>"


def test_blanks_around_special_tokens_are_swallowed_as_declared() -> None:
    end = len(byte_level().tokens) - 1
    ours = Tokenizer(byte_level(rstrip_ids=frozenset({end}), lstrip_ids=frozenset({end})))
    assert ours.decode(ours.encode("a  <|im_end|>\n b", parse_special=True)) == "ab"


def test_ends_of_a_reply() -> None:
    assert BPE.eog_ids == {BPE.id_of("<|im_end|>")} | ({BPE.id_of("<|endoftext|>")} - {BPE.bos_id})
    assert Tokenizer(byte_level(bos_id=None)).eog_ids == {BPE.id_of("<|im_end|>"), BPE.id_of("<|endoftext|>")}
    assert Tokenizer(spm(eog_ids=(1,))).eog_ids == {1, 2}


def test_to_json_gives_the_same_tokenizer_elsewhere() -> None:
    from tokenizers import Tokenizer as Library

    for ours, text in (
        (BPE, "hello world<|im_end|> é"),
        (SPM, "abc é<s> b"),
        (Tokenizer(byte_level("qwen2")), "e\u0301"),
    ):
        theirs = Library.from_str(ours.to_json())
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text, parse_special=True)
    assert Library.from_str(SPM.to_json()).encode("a").ids == SPM.encode("a", bos=True)
    assert json.loads(BPE.to_json())["model"]["type"] == "BPE"


@pytest.mark.parametrize(
    ("vocabulary", "match"),
    [
        (byte_level(kinds=(1,)), "number of token types"),
        (spm(scores=(1.0,)), "number of scores"),
        (spm(scores=(float("nan"),) * 274), "score"),
        (byte_level(tokens=("a",) * 269), "a text that token 0 does not have"),
        (byte_level(tokens=("", *byte_level().tokens[1:])), "token 0"),
        (byte_level(kinds=(9, *byte_level().kinds[1:])), "type of token 0"),
        (spm(kinds=(6, *spm().kinds[1:])), "byte token 0"),
        (byte_level(eos_id=269), "eos_id is 269; allowed: below 269"),
        (spm(eog_ids=(-1,)), "special token id"),
        (byte_level(merges=("h zz",)), "two tokens that join into a third"),
        (byte_level(merges=("hell",)), "two tokens that join into a third"),
        (byte_level(tokens=(), kinds=()), "number of tokens is 0"),
    ],
)
def test_broken_vocabularies_are_refused(vocabulary, match) -> None:
    with pytest.raises(CorruptArtifact, match=match):
        Tokenizer(vocabulary)


def test_unknown_pre_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedArchitecture, match="'martian'"):
        Tokenizer(byte_level("martian"))


def test_control_token_of_one_character() -> None:
    kinds = list(byte_level("llama-bpe").kinds)
    kinds[ord("a")] = CONTROL
    vocabulary = byte_level("llama-bpe", kinds=tuple(kinds))
    token = next(i for i, text in enumerate(vocabulary.tokens) if vocabulary.kinds[i] == CONTROL)
    with pytest.raises(CorruptArtifact, match="several characters"):
        Tokenizer(vocabulary).encode(vocabulary.tokens[token])


def test_characters_that_cannot_be_spelled_are_refused() -> None:
    """A byte-level vocabulary without some bytes would drop them from the text without a word."""
    whole = byte_level()
    lost = whole.tokens.index("Ã")  # the first byte of é
    part = byte_level(tokens=tuple("[lost]" if i == lost else text for i, text in enumerate(whole.tokens)))
    assert Tokenizer(part).encode("hello") == BPE.encode("hello")
    with pytest.raises(PlanError, match=r"'é'.*lacks 1 of the 256"):
        Tokenizer(part).encode("hello é")
