"""Graphs changed field by field: read back with the onnx package, which has no part in changing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from support.onnx_folders import write_onnx_folder
from support.specs import TINY_SPECS, random_weights
from wattwise_runtimes.contracts import LoadSpec
from wattwise_runtimes.engines.onnx.codec import PlainCodec, QuantisedCodec
from wattwise_runtimes.engines.onnx.rewrite import rewrite
from wattwise_runtimes.engines.onnx.signature import read_signature
from wattwise_runtimes.engines.onnx.wire import content, join, numeric, split
from wattwise_runtimes.formats.onnx_file import check_onnx_folder, parse_onnx
from wattwise_runtimes.spec import ModelSpec

SPEC = TINY_SPECS["gemma2"]


def changed(folder: Path, load: LoadSpec, codec: PlainCodec | QuantisedCodec, spec: ModelSpec = SPEC):
    checked = check_onnx_folder(write_onnx_folder(folder / "m", spec, random_weights(spec)))
    signature = read_signature(checked, spec, ours=True)
    result = rewrite(checked.model_path, signature, spec, load, codec)
    parse_onnx(result.model, checked.model_path)  # our own reader still accepts it
    return onnx.load(checked.model_path, load_external_data=False), onnx.load_from_string(result.model), result


def attention(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]


def test_fields_that_nobody_touches_keep_their_bytes(tmp_path: Path) -> None:
    data = check_onnx_folder(write_onnx_folder(tmp_path / "m", SPEC, random_weights(SPEC))).model_path.read_bytes()
    assert join(split(data)) == data
    graph = next(field for field in split(data) if field.number == 7)
    assert isinstance(graph.value, bytes)
    assert all(isinstance(f.value, int) or join(split(f.value)) == f.value for f in split(graph.value) if f.number == 1)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_bytes_that_are_no_message_raise(cut: int) -> None:
    data = join([numeric(1, 300), content(2, "some text"), content(3, [numeric(1, 1 << 40)])])
    assert [field.value for field in split(data)][:2] == [300, b"some text"]
    with pytest.raises((ValueError, IndexError)):
        split(data[:-cut])


def test_scores_and_biases_are_added_and_nothing_else(tmp_path: Path) -> None:
    load = LoadSpec(context=64, chunk=8, kv_type="f32", tree_leaves=2, attention_scores=True)
    before, after, result = changed(tmp_path, load, PlainCodec(np.float32, SPEC.head_dim))
    assert result.biases == {"attention_bias": None, "attention_bias_window": SPEC.sliding_window}
    assert result.scores == tuple(f"attention_scores.{i}" for i in range(SPEC.layers))
    for i, (old, new) in enumerate(zip(attention(before), attention(after), strict=True)):
        assert list(new.input)[: len(old.input)] == list(old.input)
        assert new.input[10] == ("attention_bias_window" if SPEC.is_sliding(i) else "attention_bias")
        assert list(new.output) == [*old.output, f"attention_scores.{i}"]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in new.attribute}
        wanted = {a.name: onnx.helper.get_attribute_value(a) for a in old.attribute}
        wanted.pop("local_window_size", None)
        assert attributes == {**wanted, "qk_output": 2}
    rest = [node for node in before.graph.node if node.op_type != "GroupQueryAttention"]
    assert [node for node in after.graph.node if node.op_type != "GroupQueryAttention"] == rest
    assert list(after.graph.initializer) == list(before.graph.initializer)
    assert len(after.graph.input) == len(before.graph.input) + 2
    assert len(after.graph.output) == len(before.graph.output) + SPEC.layers


@pytest.mark.parametrize("kv_type", ["int8", "int4"])
def test_the_cache_becomes_codes_with_scales_by_channel(kv_type: str, tmp_path: Path) -> None:
    scales = np.random.default_rng(0).random((SPEC.layers, 2, SPEC.kv_heads, SPEC.head_dim), np.float32)
    codec = QuantisedCodec(kv_type, scales)
    before, after, result = changed(tmp_path, LoadSpec(context=64, kv_type=kv_type), codec)
    assert (result.biases, result.scores) == ({}, ())
    element = {"int8": onnx.TensorProto.INT8, "int4": onnx.TensorProto.UINT8}[kv_type]
    values = {v.name: v.type.tensor_type for v in [*after.graph.input, *after.graph.output]}
    held = {i.name: onnx.numpy_helper.to_array(i) for i in after.graph.initializer if "scale." in i.name}
    for i, node in enumerate(attention(after)):
        for name in (*node.input[3:5], *node.output[1:3]):
            assert values[name].elem_type == element
            assert values[name].shape.dim[3].dim_value == SPEC.head_dim * codec.bits // 8
        for part, name in enumerate(node.input[12:14]):
            assert np.array_equal(held[name][0, :, 0], scales[i, part])
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["kv_cache_bit_width"] == codec.bits
        assert attributes["k_quant_type"] == attributes["v_quant_type"] == b"PER_CHANNEL"
    assert [v.name for v in after.graph.input] == [v.name for v in before.graph.input]
