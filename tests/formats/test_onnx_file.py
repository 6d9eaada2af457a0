"""ONNX: files written by the onnx package read back; broken structure, data and paths are refused by name."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fuzz.targets import tiny_onnx
from support.data import DATA, needs_data
from wattwise_devices.errors import CorruptArtifact, LoadError, UnsupportedArchitecture
from wattwise_runtimes.formats.onnx_file import check_onnx_folder, parse_onnx, read_onnx
from wattwise_runtimes.formats.onnx_tensor import DTYPES

HERE = Path("model.onnx")


def model(*initializers: onnx.TensorProto, **changes: Any) -> onnx.ModelProto:
    """A one-node model with these weights."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value("x", 1, ["n", 4])],
        [value("y", 1, None)],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    for key, change in changes.items():
        setattr(made, key, change)
    return made


def raw(
    name: str = "w", dims: tuple[int, ...] = (4,), kind: int = 1, data: bytes | None = bytes(16)
) -> onnx.TensorProto:
    """A tensor with raw data that need not fit."""
    made = TensorProto(name=name, dims=dims, data_type=kind)
    if data is not None:
        made.raw_data = data
    return made


def external(
    location: str | None, offset: str | None = None, length: str | None = None, **more: str
) -> onnx.TensorProto:
    """A tensor of four float32 kept in another file."""
    made = TensorProto(name="w", dims=[4], data_type=1, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length, **more}.items():
        if value is not None:
            made.external_data.add(key=key, value=value)
    return made


def test_what_onnx_writes_reads_back(tmp_path: Path) -> None:
    data = tiny_onnx(tmp_path / "weights.bin")
    (tmp_path / "m.onnx").write_bytes(data)
    file = read_onnx(tmp_path / "m.onnx")
    assert (file.ir_version, dict(file.opsets), dict(file.metadata_props)) == (9, {"": 20}, {"a": "b"})
    assert [(v.name, v.dtype, v.dims) for v in file.inputs] == [("x", "float32", ("n", 2)), ("c", "bool", ())]
    assert [(v.name, v.dtype, v.dims) for v in file.outputs] == [("z", "float32", ("n", 3))]
    assert file.ops == Counter({("", "Identity"): 2, ("", "MatMul"): 1, ("", "If"): 1, ("", "Constant"): 1})
    weight = file.initializers["w"]
    assert (weight.dtype, weight.shape, weight.nbytes) == ("float32", (2, 3), 24)
    assert (weight.location, weight.offset, weight.length) == (tmp_path / "weights.bin", 8, 24)
    assert file.initializers["t"].shape == (3,)
    assert file.initializers["t"].location is None
    assert file.external_files == (tmp_path / "weights.bin",)
    assert file.weights_bytes == 24 + 24


@pytest.mark.parametrize("kind", sorted(set(DTYPES) - {8}))
def test_every_element_type_in_both_stores(kind: int) -> None:
    """Raw and typed storage of 5 elements as onnx writes them, and one byte or element more or less refused."""
    try:
        typed = helper.make_tensor("w", kind, [5], [1, 0, 1, 1, 0])
        packed = helper.make_tensor("w", kind, [5], [1, 0, 1, 1, 0])
        packed = numpy_helper.from_array(numpy_helper.to_array(packed), "w")
    except (TypeError, ValueError, KeyError):
        pytest.skip(f"onnx cannot make tensors of type {kind}")
    for tensor in (typed, packed):
        assert parse_onnx(model(tensor).SerializeToString(), HERE).initializers["w"].shape == (5,)
        tensor.dims[0] = 25
        with pytest.raises(CorruptArtifact, match=r"initializer 'w'"):
            parse_onnx(model(tensor).SerializeToString(), HERE)


def test_large_attributes_of_standard_operators_are_fine() -> None:
    node = helper.make_node("Slice", ["x"], ["y"], ends=[(1 << 63) - 1], starts=[-1])
    assert parse_onnx(_graph_change(node=[node]).SerializeToString(), HERE).ops["", "Slice"] == 1


def test_dtype_names_are_those_of_onnx() -> None:
    for number, (name, bits) in DTYPES.items():
        official = TensorProto.DataType.Name(number).lower()
        assert name == {"float": "float32", "double": "float64"}.get(official, official)
        if number not in (8, *range(17, 27)):
            dtype = helper.tensor_dtype_to_np_dtype(number)
            assert bits == 8 * dtype.itemsize


def _without(field: str) -> onnx.ModelProto:
    made = model()
    made.ClearField(field)
    return made


def _opsets(*pairs: tuple[str, int]) -> onnx.ModelProto:
    made = model()
    del made.opset_import[:]
    made.opset_import.extend(helper.make_opsetid(d, v) for d, v in pairs)
    return made


def _nested(depth: int) -> onnx.ModelProto:
    made = model()
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(depth):
        inner = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=inner)], "g", [], [])
    made.graph.node.append(helper.make_node("If", ["x"], ["q"], then_branch=inner))
    return made


def _graph_change(**lists: list[Any]) -> onnx.ModelProto:
    made = model()
    for field, items in lists.items():
        getattr(made.graph, field).extend(items)
    return made


def _contrib(op: str, **attributes: Any) -> onnx.ModelProto:
    return _graph_change(node=[helper.make_node(op, [], [], domain="com.microsoft", **attributes)])


_X = helper.make_tensor_value_info("x", 1, [2])
REFUSED: dict[str, tuple[onnx.ModelProto | bytes, str, str]] = {  # name: (file, part of field, part of message)
    "ir_version": (model(ir_version=2), "ir_version", "3 to 14"),
    "new ir_version": (model(ir_version=99), "ir_version", "is 99"),
    "negative ir_version": (model(ir_version=-1), "ir_version", "is -1"),
    "no graph": (_without("graph"), "graph", "missing"),
    "no opset": (_opsets(), "opset_import", "missing"),
    "opset 0": (_opsets(("", 0)), "version of ''", "1 to"),
    "opset twice": (_opsets(("", 20), ("ai.onnx", 20)), "domain", "not used twice"),
    "graph twice": (model().SerializeToString() * 2, "field 1", "at most once"),
    "nesting": (_nested(12), "nesting of graphs", "at most 6"),
    "initializer twice": (model(raw(), raw()), "name of an initializer", "not used twice"),
    "initializer without name": (model(raw("")), "name of an initializer", "a name"),
    "input twice": (_graph_change(input=[_X]), "name of a graph input", "not used twice"),
    "input without type": (_graph_change(input=[onnx.ValueInfoProto(name="q")]), "type of 'q'", "element type"),
    "node without type": (_graph_change(node=[onnx.NodeProto(name="n")]), "op_type", "a name"),
    "element type": (_graph_change(input=[helper.make_tensor_value_info("q", 99, [1])]), "elem_type", "is 99"),
    "negative dim": (_graph_change(input=[helper.make_tensor_value_info("q", 1, [-5])]), "dimension", "-5"),
    "data type": (model(raw(kind=77)), "data_type", "is 77"),
    "raw data short": (model(raw(data=bytes(15))), "raw_data length", "16 bytes for 4 elements"),
    "no data": (model(raw(data=None)), "data", "16 bytes"),
    "negative dimension": (model(raw(dims=(-1,))), "dimension 0", "is -1"),
    "shape that wraps": (model(raw(dims=(1 << 62, 1 << 62))), "raw_data length", str(1 << 124)),
    "33 dimensions": (model(raw(dims=(1,) * 33)), "dimension 32", "at most 32"),
    "wrong store": (model(TensorProto(name="w", dims=[1], data_type=7, float_data=[1.0])), "data", "int64_data"),
    "two stores": (model(TensorProto(name="w", dims=[1], data_type=1, float_data=[1], raw_data=b"1")), "data", "one"),
    "typed count": (model(TensorProto(name="w", dims=[2], data_type=1, float_data=[1.0])), "float_data", "2 for 2"),
    "int4 count": (model(TensorProto(name="w", dims=[5], data_type=22, int32_data=[1, 2])), "int32_data", "3 for 5"),
    "segment": (model(TensorProto(name="w", segment=TensorProto.Segment(begin=0))), "segment", "whole tensors"),
    "constant": (
        _graph_change(node=[helper.make_node("Constant", [], ["k"], value=raw("k", (9,)))]), "raw_data length", "36",
    ),
    "attribute that onnxruntime cuts to 0 and divides by": (  # found by fuzzing: signal 8 in GroupQueryAttention
        _contrib("GroupQueryAttention", num_heads=1 << 32),
        "attribute of GroupQueryAttention: whole number", "32 bits",
    ),
    "list attribute of a contrib operator": (
        _contrib("A", v=[1, -(1 << 40)]), "number", "32 bits",
    ),
    "cut": (model(raw()).SerializeToString()[:-3], "length of field", "bytes left"),
    "endless varint": (b"\x08" + b"\xff" * 11, "variable-length number", "10 bytes"),
    "varint over 64 bits": (b"\x08" + b"\xff" * 9 + b"\x7f", "variable-length number", "64 bits"),
    "group": (b"\x0b\x0c", "wire type of field 1", "0, 1, 2 or 5"),
    "field 0": (b"\x00\x01", "field number", "1 to"),
    "wrong wire type": (b"\x3d" + bytes(4), "wire type of field 7", "is 5"),
    "name not UTF-8": (model(raw("w")).SerializeToString().replace(b"\x42\x01w", b"\x42\x01\xff"), "text", "UTF-8"),
    "nothing": (b"", "ir_version", "is 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_field_value_and_limit(name: str) -> None:
    file, field, message = REFUSED[name]
    data = file if isinstance(file, bytes) else file.SerializeToString()
    with pytest.raises(CorruptArtifact) as caught:
        parse_onnx(data, HERE)
    assert field in caught.value.field
    assert message in str(caught.value)


def _sparse() -> onnx.ModelProto:
    made = model()
    made.graph.sparse_initializer.add()
    return made


def _function() -> onnx.ModelProto:
    made = model()
    made.functions.add(name="f", domain="d")
    return made


def _sequence() -> onnx.ModelProto:
    return _graph_change(input=[helper.make_tensor_sequence_value_info("q", 1, [2])])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_sparse, "sparse initializers"),
        (_function, "model-local functions"),
        (_sequence, "not tensors"),
        (lambda: _graph_change(node=[helper.make_node("EPContext", [], ["k"])]), "EPContext"),
        (
            lambda: _graph_change(node=[helper.make_node("N", [], ["k"], t=helper.make_tensor_type_proto(1, [1]))]),
            "types",
        ),
    ],
)
def test_features_that_are_not_loaded_are_named(make: Any, message: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=message):
        parse_onnx(make().SerializeToString(), HERE)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (external("../w.bin"), "relative path"),
        (external("sub/../../w.bin"), "relative path"),
        (external("/etc/passwd"), "relative path"),
        (external("C:\\w.bin"), "relative path"),
        (external("..\\w.bin"), "relative path"),
        (external("*/_ORT_MEM_ADDR_/*", "4096", "16"), "relative path"),
        (external("w\0.bin"), "relative path"),
        (external(""), "relative path"),
        (external(None), "relative path"),
        (external("link.bin"), "outside.bin"),
        (external("sublink/outside.bin"), "relative path"),
        (external("circle"), "circle"),
        (external("none.bin"), "none.bin"),
        (external("folder"), "folder"),
        (external("w.bin", "50", "16"), "end of external data is 66"),
        (external("w.bin", str(1 << 62), "16"), "end of external data"),
        (external("w.bin", "-1", "16"), "whole number"),
        (external("w.bin", "1e3"), "whole number"),
        (external("w.bin", "9" * 30), "whole number"),
        (external("w.bin", "0", "17"), "external_data length is 17"),
        (external("w.bin", basepath="/"), "external_data keys"),
    ],
)
def test_external_data_stays_in_the_folder_and_in_the_file(
    tmp_path: Path, tensor: onnx.TensorProto, message: str
) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(64))
    (inside / "w.bin").write_bytes(bytes(64))
    (inside / "folder").mkdir()
    os.symlink("../outside.bin", inside / "link.bin")
    os.symlink("..", inside / "sublink")
    os.symlink("circle", inside / "circle")
    memory = inside / "*" / "_ORT_MEM_ADDR_"
    memory.mkdir(parents=True)
    (memory / "*").write_bytes(bytes(8192))
    with pytest.raises(LoadError) as caught:
        parse_onnx(model(tensor).SerializeToString(), inside / "m.onnx")
    assert message in str(caught.value)


def test_external_data_that_is_fine(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(64))
    os.symlink("sub/w.bin", tmp_path / "link.bin")
    for tensor in (external("sub/w.bin", "48", "16"), external("./sub/w.bin"), external("link.bin", checksum="ab")):
        file = parse_onnx(model(tensor).SerializeToString(), tmp_path / "m.onnx")
        assert file.initializers["w"].length == 16
    both = external("link.bin")
    both.raw_data = bytes(16)
    with pytest.raises(CorruptArtifact, match="one way of storing"):
        parse_onnx(model(both).SerializeToString(), tmp_path / "m.onnx")
    sneaky = external("link.bin")
    sneaky.data_location = TensorProto.DEFAULT
    with pytest.raises(CorruptArtifact, match="one way of storing"):
        parse_onnx(model(sneaky).SerializeToString(), tmp_path / "m.onnx")


def test_the_onnx_package_loads_what_we_accept(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(tiny_onnx(tmp_path / "weights.bin"))
    theirs = onnx.load(tmp_path / "m.onnx")
    assert numpy_helper.to_array(theirs.graph.initializer[0]).shape == (2, 3)
    np.testing.assert_array_equal(numpy_helper.to_array(theirs.graph.initializer[1]), [1, 2, 300])


def _folder(folder: Path, config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "m.onnx").write_bytes(model(raw()).SerializeToString())
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


def test_genai_folders(tmp_path: Path) -> None:
    folder = check_onnx_folder(_folder(tmp_path / "a", {"model": {"decoder": {"filename": "m.onnx"}}}))
    assert folder.model_path.name == "m.onnx"
    assert folder.model.weights_bytes == 16
    assert folder.genai_config["model"]["decoder"] == {"filename": "m.onnx"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model.decoder"),
        ([], "an object"),
        ({"model": {"decoder": []}}, "model.decoder"),
        ({"model": {"decoder": {}}}, "model.decoder.filename"),
        ({"model": {"decoder": {"filename": "../a/m.onnx"}}}, "inside the folder"),
        ({"model": {"decoder": {"filename": "/etc/passwd"}}}, "inside the folder"),
        ({"model": {"decoder": {"filename": "m.onnx\0"}}}, "inside the folder"),
        ({"model": {"decoder": {"filename": "x.onnx"}}}, "x.onnx cannot be opened"),
        ({"model": {"decoder": {"filename": "m.onnx", "pipeline": []}}}, "pipeline"),
        (
            {"model": {"decoder": {"filename": "m.onnx", "session_options": {"custom_ops_library": "x.so"}}}},
            "run any code",
        ),
    ],
)
def test_bad_genai_folders_are_refused(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(LoadError) as caught:
        check_onnx_folder(_folder(tmp_path / "a", config))
    assert message in str(caught.value)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="is not a folder"):
        check_onnx_folder(tmp_path / "none")
    with pytest.raises(LoadError, match="genai_config"):
        check_onnx_folder(tmp_path)


@pytest.mark.data
@needs_data
def test_a_real_folder_as_onnx_reads_it() -> None:
    folder = check_onnx_folder(DATA / "models" / "random-gpt2-onnx-genai")
    theirs = onnx.load(folder.model_path)
    ours = folder.model
    assert ours.ir_version == theirs.ir_version
    assert dict(ours.opsets) == {o.domain: o.version for o in theirs.opset_import}
    assert [v.name for v in ours.inputs] == [v.name for v in theirs.graph.input]
    assert [v.name for v in ours.outputs] == [v.name for v in theirs.graph.output]
    assert ours.ops == Counter((n.domain, n.op_type) for n in theirs.graph.node)
    assert list(ours.initializers) == [t.name for t in theirs.graph.initializer]
    for tensor in theirs.graph.initializer:
        array = numpy_helper.to_array(tensor)
        mine = ours.initializers[tensor.name]
        assert (mine.shape, mine.dtype, mine.nbytes) == (array.shape, str(array.dtype), array.nbytes)
