"""Block quantisation against a plain per-element reference and against onnxruntime's own kernels."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from wattwise_convert.onnx.quantize import dequantize_rows, pack_codes, quantize_rows, unpack_codes

RNG = np.random.default_rng(0)


def plain_dequantize(packed, k: int) -> np.ndarray:
    """One element at a time, straight from the definition w = scale * (code - zero)."""
    n = len(packed.scales)
    per_byte = 8 // packed.bits
    mask = (1 << packed.bits) - 1
    out = np.zeros((n, k), np.float32)
    for row in range(n):
        for i in range(k):
            b, j = divmod(i, packed.block)
            code = (int(packed.codes[row, b, j // per_byte]) >> (packed.bits * (j % per_byte))) & mask
            zero = 1 << (packed.bits - 1)
            if packed.zeros is not None:
                zero = (int(packed.zeros[row, b // per_byte]) >> (packed.bits * (b % per_byte))) & mask
            out[row, i] = packed.scales[row, b] * np.float32(code - zero)
    return out


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("bits", "block", "k"), [(4, 32, 96), (8, 32, 64), (2, 64, 192), (4, 16, 40), (8, 128, 128)])
def test_bytes_mean_what_the_format_says(bits: int, block: int, k: int, zero_points: bool) -> None:
    rows = RNG.standard_normal((3, k), dtype=np.float32)
    packed = quantize_rows(rows, bits=bits, block=block, zero_points=zero_points)
    assert np.array_equal(dequantize_rows(packed, k), plain_dequantize(packed, k))


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("bits", "block", "k"), [(4, 32, 96), (8, 32, 96), (2, 64, 128), (4, 32, 172), (2, 32, 172)])
def test_onnxruntime_multiplies_by_the_same_weights(bits: int, block: int, k: int, zero_points: bool) -> None:
    n = 48
    rows = RNG.standard_normal((n, k), dtype=np.float32)
    packed = quantize_rows(rows, bits=bits, block=block, zero_points=zero_points)
    tensors = [numpy_helper.from_array(packed.codes, "b"), numpy_helper.from_array(packed.scales, "s")]
    if packed.zeros is not None:
        tensors.append(numpy_helper.from_array(packed.zeros, "z"))
    node = helper.make_node(
        "MatMulNBits", ["x", *[t.name for t in tensors]], ["y"], domain="com.microsoft",
        K=k, N=n, bits=bits, block_size=block, accuracy_level=0,
    )  # fmt: skip
    x = RNG.standard_normal((5, k), dtype=np.float32)
    got = run_graph(node, tensors, x, n)
    want = x @ plain_dequantize(packed, k).T
    assert np.abs(got - want).max() < 1e-4 * want.std()


def run_graph(node: onnx.NodeProto, tensors: list[onnx.TensorProto], x: np.ndarray, n: int) -> np.ndarray:
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[0], n])], initializer=tensors,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(("bits", "worst"), [(8, 0.0055), (4, 0.085), (2, 0.34)])
def test_error_on_gaussian_rows(bits: int, worst: float) -> None:
    rows = RNG.standard_normal((64, 1024), dtype=np.float32)
    back = dequantize_rows(quantize_rows(rows, bits=bits, block=32), 1024)
    assert np.sqrt(np.square(back - rows).sum() / np.square(rows).sum()) < worst


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zeros_constants_and_tiny_values_survive(bits: int) -> None:
    rows = np.zeros((4, 64), np.float32)
    rows[1] = 3.0
    rows[2] = -1e-38
    rows[3, 5] = 1e30
    back = dequantize_rows(quantize_rows(rows, bits=bits, block=32), 64)
    assert np.isfinite(back).all()
    assert np.array_equal(back[0], rows[0])
    assert np.allclose(back[1:3], rows[1:3], rtol=1e-6, atol=1e-42)
    assert back[3, 5] == pytest.approx(1e30, rel=1e-6)
    assert np.count_nonzero(back[3]) == 1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_is_reversible(bits: int) -> None:
    codes = RNG.integers(0, 1 << bits, (3, 5, 16)).astype(np.uint8)
    assert np.array_equal(unpack_codes(pack_codes(codes, bits), bits), codes)
