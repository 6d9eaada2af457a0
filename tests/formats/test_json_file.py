"""JSON from untrusted files: limits before parsing, strictness, and nothing else changed."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.data import DATA, needs_data
from wattwise_devices.errors import CorruptArtifact, LoadError, UnsupportedArchitecture
from wattwise_runtimes.formats.json_file import parse_json, read_json, read_json_object
from wattwise_runtimes.formats.tokenizer_json import check_tokenizer_data, check_tokenizer_json

HERE = Path("x.json")
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
trees = st.recursive(
    scalars | st.text(), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


@given(trees, st.booleans(), st.sampled_from([None, 1]))
def test_valid_json_is_read_as_it_is(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert parse_json(text, HERE) == value


REFUSED = {
    "nan": (b"[NaN]", "finite"), "infinity": (b"-Infinity", "finite"), "too large": (b"1e999", "double"),
    "65 bits": (b"18446744073709551616", "64-bit"), "many digits": (b"9" * 5000, "64-bit"),
    "name twice": (b'{"a":1,"b":{"c":1,"c":2}}', "not used twice"), "latin-1": (b'"\xe9"', "UTF-8"),
    "overlong": (b'"\xc0\x80"', "UTF-8"), "byte order mark": b'\xef\xbb\xbf{}',
    "half a pair": (b'["\\udc00"]', "surrogate"),
    "half a pair as a name": (b'{"\\ud83d": 1}', "surrogate"), "two values": (b"1 2", "Extra data"), "empty": b"",
    "depth": (b"[" * 65 + b"]" * 65, "nesting"), "depth of objects": (b'{"a":' * 65 + b"1" + b"}" * 65, "nesting"),
    "comment": b"// x\n1", "trailing comma": b"[1,]", "single quotes": b"{'a':1}", "control character": b'"\n"',
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    case = REFUSED[name]
    data, message = case if isinstance(case, tuple) else (case, "JSON")
    with pytest.raises(CorruptArtifact) as caught:
        parse_json(data, HERE)
    assert message in str(caught.value)


def test_brackets_in_strings_do_not_count() -> None:
    value = {"a": "[" * 500, "b\\": '"[{', "c": "\\\\" * 9 + "["}
    assert parse_json(json.dumps(value).encode(), HERE) == value


def test_limits_are_the_callers(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"[[1,2,3]]")
    assert read_json(path, max_depth=2, max_values=6) == [[1, 2, 3]]
    with pytest.raises(CorruptArtifact, match="nesting is 2; allowed: at most 1"):
        read_json(path, max_depth=1)
    with pytest.raises(CorruptArtifact, match="brackets and commas is 6; allowed: at most 5"):
        read_json(path, max_values=5)
    with pytest.raises(CorruptArtifact, match="file size in bytes is 9; allowed: at most 8"):
        read_json(path, max_bytes=8)
    with pytest.raises(CorruptArtifact, match="allowed: an object"):
        read_json_object(path)
    path.write_bytes(b'{"a":1,"a":2}')
    assert read_json(path, duplicate_keys=True) == {"a": 2}
    with pytest.raises(LoadError, match="cannot be opened"):
        read_json(tmp_path / "none.json")


@pytest.mark.data
@needs_data
def test_the_json_test_suite() -> None:
    """Every file that a parser must accept, and every one that it must refuse."""
    wrong = []
    with tarfile.open(DATA / "json-schema" / "JSONTestSuite.tar.gz") as archive:
        members = [m for m in archive.getmembers() if m.isfile() and Path(m.name).name[:2] in ("y_", "n_")]
        assert len(members) > 250
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            name = Path(member.name).name
            try:
                parse_json(file.read(), Path(name), duplicate_keys=True)
                accepted = True
            except CorruptArtifact:
                accepted = False
            if accepted != name.startswith("y_"):
                wrong.append(name)
    assert wrong == []


def bpe(**changes: Any) -> dict[str, Any]:
    """A small tokenizer.json with changes to its model."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    return {"added_tokens": [{"id": 3, "content": "<s>"}], "model": model | changes}


def test_good_tokenizers_pass() -> None:
    prefixed = bpe(vocab={"a": 0, "##b": 1, "ab": 2}, merges=[["a", "##b"]], continuing_subword_prefix="##")
    unigram = {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a", -1.5]]}}
    old = bpe()
    del old["model"]["type"]
    for data in (bpe(), prefixed, unigram, old):
        assert check_tokenizer_data(data, HERE) is data


TOKENIZERS: dict[str, tuple[Any, str]] = {
    "no model": ({"a": 1}, "'model'"),
    "no vocabulary": (bpe(vocab=None), "'model.vocab'"),
    "empty vocabulary": (bpe(vocab={}), "number of tokens"),
    "negative id": (bpe(vocab={"a": -1}), "id of token 'a'"),
    "huge id": (bpe(vocab={"a": 1 << 40}), "id of token 'a'"),
    "float id": (bpe(vocab={"a": 1.0}), "id of token 'a'"),
    "same id": (bpe(vocab={"a": 1, "b": 1}, merges=[]), "ids in 'model.vocab'"),
    "long token": (bpe(vocab={"a" * 70_000: 0}, merges=[]), "length of token 0"),
    "merges": (bpe(merges={"a": "b"}), "'model.merges'"),
    "merge of three": (bpe(merges=["a b ab"]), "merge 0"),
    "merge of one": (bpe(merges=[["a"]]), "merge 0"),
    "unknown part": (bpe(merges=["a x"]), "merge 0"),
    "unknown result": (bpe(merges=["b a"]), "merge 0"),
    "unigram piece": ({"model": {"type": "Unigram", "vocab": [["a"]]}}, "'model.vocab'"),
    "unigram unknown": ({"model": {"type": "Unigram", "vocab": [["a", 0]], "unk_id": 1}}, "'model.unk_id'"),
    "added id": (bpe() | {"added_tokens": [{"id": 1 << 60, "content": "x"}]}, "id of added token 0"),
    "added content": (bpe() | {"added_tokens": [{"id": 3, "content": ""}]}, "content of added token 0"),
    "padding": (bpe() | {"padding": {"strategy": {"Fixed": 1 << 40}}}, "'padding' length"),
    "padding multiple": (bpe() | {"padding": {"strategy": "BatchLongest", "pad_to_multiple_of": 1 << 40}}, "'padding'"),
    "huge text": (bpe() | {"decoder": {"type": "Replace", "content": "x" * 70_000}}, "a text in 'decoder'"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bad_tokenizers_are_refused(name: str) -> None:
    data, field = TOKENIZERS[name]
    with pytest.raises(CorruptArtifact) as caught:
        check_tokenizer_data(data, HERE)
    assert field in caught.value.field


def test_unknown_tokenizer_model() -> None:
    with pytest.raises(UnsupportedArchitecture, match="'Magic' is not known"):
        check_tokenizer_data(bpe(type="Magic"), HERE)


@pytest.mark.data
@needs_data
def test_real_tokenizers_pass() -> None:
    files = sorted(DATA.glob("**/tokenizer.json"))
    assert len(files) >= 4
    for path in files:
        assert check_tokenizer_json(path)["model"]["vocab"]
