"""Safetensors: files written by the safetensors package read back; whatever breaks the format is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from support.data import DATA, needs_data
from wattwise_devices.errors import CorruptArtifact, LoadError, UnsupportedArchitecture
from wattwise_runtimes.formats.float8 import decode_e4m3, decode_e5m2
from wattwise_runtimes.formats.safetensors import open_folder, open_safetensors, parse_safetensors

DTYPES = (
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
)


def build(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header, as an object or as bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(begin: int, end: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    """A header entry."""
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=4),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=4, max_size=4),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_what_safetensors_writes_reads_back(
    tmp_path_factory: Any, shapes: list[list[int]], dtypes: list[str], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    rng = np.random.default_rng(0)
    arrays = {
        f"t{i}": np.asarray(rng.standard_normal(shape) * 9).astype(dtype)
        for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))
    }
    with np.errstate(invalid="ignore"):
        save_file(arrays, path, metadata)
        file = open_safetensors(path)
        assert dict(file.metadata) == metadata
        assert set(file.tensors) == set(arrays)
        for name, value in arrays.items():
            assert file.tensors[name].shape == value.shape
            np.testing.assert_array_equal(file.read_rows(name), value.astype(np.float32))
            if value.ndim:
                half = value.shape[0] // 2
                np.testing.assert_array_equal(file.read_rows(name, half), value[half:].astype(np.float32))


def test_bf16_and_rows_out_of_range(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored = np.array([[0x3F80, 0xC000], [0x7F80, 0x0001]], "<u2")  # 1, -2, infinity, the least subnormal
    path.write_bytes(build({"w": entry(0, 8, [2, 2], "BF16")}, stored.tobytes()))
    file = open_safetensors(path)
    np.testing.assert_array_equal(file.read_rows("w"), [[1, -2], [np.inf, 2.0**-133]])
    assert file.read_rows("w").flags.writeable
    with pytest.raises(ValueError, match="has 2"):
        file.read_rows("w", 0, 3)


def test_eight_bit_floats_against_their_definition() -> None:
    codes = np.arange(256, dtype=np.uint8)
    for decode, exponent_bits, mantissa_bits, bias in ((decode_e4m3, 4, 3, 7), (decode_e5m2, 5, 2, 15)):
        values = decode(codes)
        for code in range(256):
            exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
            mantissa = code & (1 << mantissa_bits) - 1
            if exponent_bits == 4 and code & 0x7F == 0x7F:
                assert np.isnan(values[code])
            elif exponent_bits == 5 and exponent == 31:
                assert np.isnan(values[code]) if mantissa else np.isinf(values[code])
            else:
                fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
                expected = fraction * 2.0 ** (max(exponent, 1) - bias) * (-1 if code >= 128 else 1)
                assert values[code] == expected


REFUSED: dict[str, tuple[bytes, str, str]] = {  # name: (file, part of the field, part of the message)
    "header length": (build({}, length=1 << 63), "header length", str(1 << 63)),
    "header beyond the file": (build({}, length=100), "header length", "2 follow"),
    "header over 100 MB": ((100_000_001).to_bytes(8, "little") + b"{}", "header length", "at most 2"),
    "no object": (build([1]), "first byte", "'{'"),
    "leading space": (build(b" {}"), "first byte", "'{'"),
    "not JSON": (build(b'{"a":}'), "header at character 5", "JSON"),
    "not UTF-8": (build(b'{"\xff":1}'), "header at byte 2", "UTF-8"),
    "name twice": (build(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}'), "header name", "twice"),
    "nesting": (build(b'{"a":' + b"[" * 20 + b"]" * 20 + b"}"), "header: nesting", "at most 8"),
    "metadata": (build({"__metadata__": {"a": 1}}), "__metadata__", "strings"),
    "name with NUL": (build({"a\0": entry(0, 0)}), "name of a tensor", "unprintable"),
    "entry": (build({"a": 5}), "entry of tensor 'a'", "dtype, shape"),
    "extra key": (build({"a": entry(0, 0) | {"x": 1}}), "entry of tensor 'a'", "dtype, shape"),
    "dtype": (build({"a": entry(0, 0, dtype="F4")}), "dtype of tensor 'a'", "F4"),
    "dtype no text": (build({"a": entry(0, 0, dtype=["F32"])}), "dtype of tensor 'a'", "one of"),
    "negative dimension": (build({"a": entry(0, 1, [-1])}, b"x"), "shape of tensor 'a'", "whole numbers"),
    "float dimension": (build({"a": entry(0, 1, [1.0])}, b"x"), "shape of tensor 'a'", "whole numbers"),
    "true as dimension": (build({"a": entry(0, 1, [True])}, b"x"), "shape of tensor 'a'", "whole numbers"),
    "nine dimensions": (build({"a": entry(0, 1, [1] * 9)}, b"x"), "shape of tensor 'a'", "up to 8"),
    "shape that wraps": (build({"a": entry(0, 1, [1 << 62, 1 << 62])}, b"x"), "size of tensor 'a'", str(1 << 124)),
    "offsets backwards": (build({"a": entry(0, 0) | {"data_offsets": [5, 1]}}), "data_offsets of", "begin <="),
    "three offsets": (build({"a": entry(0, 0) | {"data_offsets": [0, 0, 0]}}), "data_offsets", "begin, end"),
    "end beyond the file": (build({"a": entry(0, 9)}, b"x"), "end of tensor 'a'", "1 bytes"),
    "size": (build({"a": entry(0, 4, [1, 2])}, bytes(4)), "size of tensor 'a'", "2 bytes for shape"),
    "overlap": (build({"a": entry(0, 3), "b": entry(2, 4)}, bytes(4)), "begin of tensor 'b'", "end of tensor 'a'"),
    "hole": (build({"a": entry(0, 1), "b": entry(2, 4)}, bytes(4)), "begin of tensor 'b'", "is 2"),
    "hole at the start": (build({"a": entry(1, 2)}, bytes(2)), "begin of tensor 'a'", "end of the header"),
    "bytes at the end": (build({"a": entry(0, 1)}, bytes(2)), "file size", "end of tensor 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_field_value_and_limit(name: str) -> None:
    data, field, message = REFUSED[name]
    with pytest.raises(CorruptArtifact) as caught:
        parse_safetensors(data, Path("m.safetensors"))
    assert field in caught.value.field
    assert message in str(caught.value)


def test_header_padded_with_spaces_is_fine() -> None:
    assert parse_safetensors(build(b'{"__metadata__":{"a":"b"}}    '), Path("x")).metadata == {"a": "b"}


def _shards(folder: Path, weight_map: Any, files: dict[str, list[str]]) -> Path:
    for file, names in files.items():
        (folder / file).write_bytes(save({name: np.full(2, i, np.float32) for i, name in enumerate(names)}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_are_one_view(tmp_path: Path) -> None:
    folder = _shards(tmp_path, {"a": "m1.safetensors", "b": "m1.safetensors", "c": "m2.safetensors"},
                     {"m1.safetensors": ["a", "b"], "m2.safetensors": ["c"]})  # fmt: skip
    view = open_folder(folder)
    assert {n: view.read_rows(n).tolist() for n in "abc"} == {"a": [0, 0], "b": [1, 1], "c": [0, 0]}
    assert [p.name for p in view.files] == ["model.safetensors.index.json", "m1.safetensors", "m2.safetensors"]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "weight_map"),
        ([1], "weight_map"),
        ({"a": "../m1.safetensors"}, "plain file name"),
        ({"a": "/etc/passwd"}, "plain file name"),
        ({"a": "sub/m1.safetensors"}, "plain file name"),
        ({"a": "..\\m1.safetensors"}, "plain file name"),
        ({"a": ""}, "plain file name"),
        ({"a": ".."}, "plain file name"),
        ({"a": "m\0.safetensors"}, "plain file name"),
        ({"a": 5}, "plain file name"),
        ({"a": "m1.safetensors", "zz": "m1.safetensors"}, "'zz'"),
        ({"a": "m1.safetensors"}, "does not list"),
        ({"a": "m1.safetensors", "b": "m1.safetensors", "x": "none.safetensors"}, "none.safetensors"),
        ({"a": "m1.safetensors", "b": "weights.bin"}, "run any code"),
    ],
)
def test_broken_indices_are_refused(tmp_path: Path, weight_map: Any, message: str) -> None:
    folder = _shards(tmp_path, weight_map, {"m1.safetensors": ["a", "b"]})
    with pytest.raises(LoadError) as caught:
        open_folder(folder)
    assert message in str(caught.value)


def test_one_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = _shards(tmp_path, {"a": "m1.safetensors", "c": "m2.safetensors"},
                     {"m1.safetensors": ["a"], "m2.safetensors": ["a", "c"]})  # fmt: skip
    with pytest.raises(CorruptArtifact, match="does not list"):
        open_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "x.ckpt"])
def test_pickles_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedArchitecture, match="can run any code"):
        open_folder(tmp_path)
    with pytest.raises(UnsupportedArchitecture, match="can run any code"):
        open_safetensors(tmp_path / name)


def test_folders_without_weights(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(LoadError, match=r"neither model\.safetensors"):
            open_folder(folder)


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("name", ["stories260K-hf", "stories3M-hf"])
def test_real_checkpoints_as_safetensors_reads_them(name: str) -> None:
    view, expected = open_folder(DATA / "models" / name), load_file(DATA / "models" / name / "model.safetensors")
    assert set(view.tensors) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(view.read_rows(key), value.astype(np.float32))
