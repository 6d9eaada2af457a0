"""GGUF files written by others read back as they were written: metadata, tensors, ranges of rows, split models."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.raw_gguf import Raw, array, scalar, tensor, text, u32
from fuzz.tiny_gguf import KIND, Draft
from support.data import DATA, needs_data
from wattwise_devices.errors import CorruptArtifact, LoadError
from wattwise_runtimes.formats.gguf import GGUFFile, parse_gguf, read_gguf
from wattwise_runtimes.formats.gguf_quants import can_dequantize, dequantize
from wattwise_runtimes.formats.gguf_types import TENSOR_TYPES

GGUF_DECODES = {kind for kind in Kind if kind in gguf.quants._type_traits}


def test_metadata_of_every_type(tmp_path: Path) -> None:
    numbers = {
        KIND.UINT8: [0, 255], KIND.INT8: [-128, 127], KIND.UINT16: [0, 65535], KIND.INT16: [-32768, 5],
        KIND.UINT32: [0, 2**32 - 1], KIND.INT32: [-(2**31), 7], KIND.UINT64: [0, 2**64 - 1],
        KIND.INT64: [-(2**63), 3], KIND.FLOAT32: [0.5, -1.25], KIND.FLOAT64: [1e300, -0.1], KIND.BOOL: [True, False],
    }  # fmt: skip
    draft = Draft()
    for kind, values in numbers.items():
        draft.fields[f"one.{kind.name}"] = (values[1], kind)
        draft.fields[f"many.{kind.name}"] = (values, (KIND.ARRAY, kind))
    draft.fields["one.text"] = ("na\u00efve \U0001f600\n", KIND.STRING)
    draft.fields["many.text"] = (["", "a", "\u2581w"], (KIND.ARRAY, KIND.STRING))
    file = read_gguf(draft.write(tmp_path / "x.gguf"))
    for kind, values in numbers.items():
        assert file.fields[f"one.{kind.name}"] == values[1]
        assert type(file.fields[f"one.{kind.name}"]) is type(values[1])
        assert file.fields[f"many.{kind.name}"].tolist() == values
        assert file.field_types[f"one.{kind.name}"] == kind.name.lower()
        assert file.field_types[f"many.{kind.name}"] == f"array[{kind.name.lower()}]"
    assert file.fields["one.text"] == "na\u00efve \U0001f600\n"
    assert file.fields["many.text"] == ["", "a", "\u2581w"]
    assert (file.field_types["one.text"], file.field_types["many.text"]) == ("string", "array[string]")


keys = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=20)
values = st.one_of(
    st.integers(0, 2**32 - 1), st.booleans(), st.text(max_size=30),
    st.lists(st.text(max_size=8), min_size=1, max_size=9),
    st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=9),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    fields=st.dictionaries(keys, values, max_size=8),
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=4),
)
def test_anything_that_gguf_writes_reads_back(
    tmp_path_factory: Any, fields: dict[str, Any], shapes: list[list[int]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.gguf"
    writer = gguf.GGUFWriter(path, "none")
    for key, value in fields.items():
        kind = KIND.UINT32 if type(value) is int else None
        writer.add_key_value("k." + key, value, *_kind_of(value, kind))
    arrays = {
        f"t{i}": np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)
    }
    for name, value in arrays.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    for key, value in fields.items():
        read = file.fields["k." + key]
        assert (read.tolist() if isinstance(read, np.ndarray) else read) == value
    assert list(file.tensors) == list(arrays)
    for name, value in arrays.items():
        assert file.tensors[name].shape == value.shape
        np.testing.assert_array_equal(file.read_rows(name), value)


def _kind_of(value: Any, number: Any) -> tuple[Any, ...]:
    if isinstance(value, list):
        return KIND.ARRAY, KIND.STRING if isinstance(value[0], str) else KIND.FLOAT32
    return (KIND.BOOL if isinstance(value, bool) else number or KIND.STRING,)


def test_type_table_agrees_with_gguf() -> None:
    """Except Q8_1, whose size the package has wrong (40; the struct in ggml-common.h has 36 bytes)."""
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        ours = TENSOR_TYPES[kind.value]
        assert (ours.name, ours.block) == (kind.name.lower(), block)
        if kind != Kind.Q8_1:
            assert ours.block_bytes == size


def _tensor_of(kind: Kind, rows: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Random blocks; the scales come out finite often enough and the comparison treats NaN as equal."""
    info = TENSOR_TYPES[kind.value]
    return rng.integers(0, 256, (rows, info.nbytes(width)), dtype=np.uint8)


@pytest.mark.parametrize("kind", sorted(GGUF_DECODES), ids=lambda k: k.name)
def test_rows_of_quantised_tensors(tmp_path: Path, kind: Kind) -> None:
    """Whole tensors as the gguf package decodes them, and every range of rows equal to that part of the whole."""
    data = _tensor_of(kind, 7, 512, np.random.default_rng(kind.value))
    draft = Draft(tensors={"first": np.ones(3, np.float32), "w": (data, kind)})
    file = read_gguf(draft.write(tmp_path / "x.gguf"))
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, kind)
    np.testing.assert_array_equal(file.read_rows("w"), expected)
    for start, stop in ((0, 0), (0, 1), (3, 4), (2, 7), (7, 7)):
        np.testing.assert_array_equal(file.read_rows("w", start, stop), expected[start:stop])
    assert file.raw("w").tobytes() == data.tobytes()
    assert not file.raw("w").flags.writeable
    with pytest.raises(ValueError, match=r"rows 3\.\.8"):
        file.read_rows("w", 3, 8)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8, np.int16, np.int32, np.int64])
def test_rows_of_plain_tensors(tmp_path: Path, dtype: Any) -> None:
    value = (np.arange(2 * 3 * 4).reshape(2, 3, 4) - 11).astype(dtype)
    file = read_gguf(Draft(tensors={"w": value, "v": value.reshape(-1)}).write(tmp_path / "x.gguf"))
    assert file.tensors["w"].shape == (2, 3, 4)
    np.testing.assert_array_equal(file.read_rows("w", 1), value[1:].astype(np.float32))
    np.testing.assert_array_equal(file.read_rows("v", 5, 9), value.reshape(-1)[5:9].astype(np.float32))


def test_rows_inside_a_block_of_a_one_dimensional_tensor(tmp_path: Path) -> None:
    whole = np.linspace(-1, 1, 96, dtype=np.float32)
    data = gguf.quants.quantize(whole, Kind.Q8_0)
    file = read_gguf(Draft(tensors={"v": (data, Kind.Q8_0)}).write(tmp_path / "x.gguf"))
    expected = gguf.quants.dequantize(data, Kind.Q8_0).reshape(-1)
    for start, stop in ((0, 96), (5, 6), (30, 70), (64, 96)):
        np.testing.assert_array_equal(file.read_rows("v", start, stop), expected[start:stop])


def test_newest_types_by_their_definition() -> None:
    """q1_0: a sign per bit; q2_0: codes 0..3 mean -1..2. One value at a time, as the definition says."""
    rng = np.random.default_rng(0)
    for name, block, per_byte, bits in (("q1_0", 128, 8, 1), ("q2_0", 64, 4, 2)):
        data = rng.integers(0, 256, 3 * 18, dtype=np.uint8)
        data.reshape(3, 18)[:, :2] = np.array([[0, 0x3C], [0, 0xC0], [0x66, 0x2E]], np.uint8)
        got = dequantize(data, name)
        for i in range(3 * block):
            row = data[i // block * 18 :][:18]
            code = int(row[2 + i % block // per_byte]) >> (i % per_byte * bits) & (1 << bits) - 1
            scale = float(row[:2].view(np.float16)[0])
            assert got[i] == (scale * (2 * code - 1) if bits == 1 else scale * (code - 1))


def test_every_type_reads_or_says_why_not() -> None:
    for kind in TENSOR_TYPES.values():
        blocks = np.zeros(2 * kind.block_bytes, np.uint8)
        if can_dequantize(kind.name):
            assert dequantize(blocks, kind.name).shape == (2 * kind.block,)
        else:
            with pytest.raises(LoadError, match=f"type {kind.name}"):
                dequantize(blocks, kind.name)


def _split(folder: Path, count: int = 2, wrong: dict[str, bytes] | None = None) -> Path:
    """A split model with one tensor per part; `wrong` replaces fields of the last part."""
    wrong = wrong or {}
    for number in range(count):
        fields = {
            "no": scalar("split.no", 2, number.to_bytes(2, "little")),
            "count": scalar("split.count", 2, count.to_bytes(2, "little")),
            "total": scalar("split.tensors.count", 5, (count).to_bytes(4, "little")),
        } | (wrong if number == count - 1 else {})
        name = "t0" if "same_name" in wrong else f"t{number}"
        raw = Raw(
            [f for k, f in fields.items() if k != "same_name"], [tensor(name)], np.full(4, number, "<f4").tobytes()
        )
        (folder / f"m-{number + 1:05d}-of-{count:05d}.gguf").write_bytes(raw.build())
    return folder / f"m-00001-of-{count:05d}.gguf"


def test_split_models_are_one(tmp_path: Path) -> None:
    file = read_gguf(_split(tmp_path, 3))
    assert [p.name for p in file.parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert [file.read_rows(f"t{i}").tolist() for i in range(3)] == [[0.0] * 4, [1.0] * 4, [2.0] * 4]
    assert file.raw("t2").view("<f4").tolist() == [2.0] * 4


def test_broken_splits_are_refused(tmp_path: Path) -> None:
    cases = {
        "no": {"no": scalar("split.no", 2, b"\x05\x00")},
        "type": {"no": u32("split.no", 1)},
        "count": {"count": scalar("split.count", 2, b"\x05\x00")},
        "same name": {"same_name": b""},
    }
    for name, wrong in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(CorruptArtifact, match=r"split|tensor 't0'"):
            read_gguf(_split(folder, 2, wrong))
    first = _split(tmp_path, 2)
    (tmp_path / "m-00002-of-00002.gguf").rename(tmp_path / "second.gguf")
    with pytest.raises(LoadError, match="m-00002-of-00002"):
        read_gguf(first)
    with pytest.raises(CorruptArtifact, match="00001-of-00002"):
        read_gguf(first.rename(tmp_path / "renamed.gguf"))
    odd = Raw([array("split.count", 4, 2, bytes(8))])
    (tmp_path / "odd.gguf").write_bytes(odd.build())
    with pytest.raises(CorruptArtifact, match=r"split\.count"):
        read_gguf(tmp_path / "odd.gguf")


def test_a_vocabulary_of_128k_tokens_is_read_fast(tmp_path: Path) -> None:
    items = b"".join(text(f"token {i}") for i in range(128_000))
    data = Raw([array("tokens", 8, 128_000, items)]).build()
    seconds = []
    for _ in range(3):
        started = time.thread_time()
        file = parse_gguf(data, tmp_path)
        seconds.append(time.thread_time() - started)
    assert file.fields["tokens"][127_999] == "token 127999"
    assert min(seconds) < 0.3


def test_a_file_that_shrinks_after_it_was_checked(tmp_path: Path) -> None:
    path = Draft(tensors={"w": np.ones((64, 64), np.float32)}).write(tmp_path / "x.gguf")
    file = read_gguf(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptArtifact, match="data of tensor 'w'"):
        file.read_rows("w")


@pytest.mark.data
@needs_data
@pytest.mark.parametrize(
    "name", ["models/random-llama2-gguf/llama-2-tiny-random.gguf", "tokenizers/ggml-vocab/ggml-vocab-gpt-2.gguf"]
)
def test_real_files_as_the_gguf_package_reads_them(name: str) -> None:
    ours, theirs = read_gguf(DATA / name), gguf.GGUFReader(DATA / name)
    fields = {k: v for k, v in theirs.fields.items() if not k.startswith("GGUF.")}
    assert list(ours.fields) == list(fields)
    for key, theirs_value in fields.items():
        _assert_same(ours, key, theirs_value.contents())
    assert list(ours.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        mine = ours.tensors[t.name]
        assert (mine.offset, mine.nbytes, mine.shape) == (t.data_offset, t.n_bytes, tuple(map(int, t.shape))[::-1])
        np.testing.assert_array_equal(ours.read_rows(t.name), np.asarray(t.data, np.float32).reshape(mine.shape))


def _assert_same(file: GGUFFile, key: str, expected: Any) -> None:
    value = file.fields[key]
    assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected
