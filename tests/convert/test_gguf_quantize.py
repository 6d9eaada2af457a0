"""The numpy quantiser against ggml's own reference quantiser (bit for bit) and against the gguf package."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wattwise_convert.gguf.quantize import ENCODERS, encode, overflows
from wattwise_runtimes.formats.gguf_quants import dequantize
from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME

BLOCK_TYPES = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")


def hard_rows() -> np.ndarray:
    """Rows of 64: noise of many sizes, ties, halves, constants, zeros of both signs, lone outliers."""
    rng = np.random.default_rng(5)
    noise = [rng.standard_normal((400, 64)) * 10.0**power for power in range(-6, 4)]
    halves = rng.integers(-127, 128, (400, 64)) * 0.5
    lone = np.zeros((64, 64))
    np.fill_diagonal(lone, rng.standard_normal(64))
    constant = np.repeat(rng.standard_normal((50, 1)), 64, axis=1)
    zeros = np.zeros((2, 64))
    return np.concatenate([*noise, halves, lone, constant, zeros, -zeros, np.abs(noise[6]), -np.abs(noise[6])]).astype(
        np.float32
    )


def large_rows() -> np.ndarray:
    """Those whose scales f16 holds as normal numbers, with full precision."""
    rows = hard_rows()
    return rows[(np.abs(rows).reshape(-1, 2, 32).max(axis=2) > 0.1).all(axis=1)]


@pytest.mark.llama
@pytest.mark.parametrize("kind", [name for name in ENCODERS if name != "f32"])
def test_bytes_are_those_of_ggml(kind: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    library = next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base*"))
    chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    rows, entry = hard_rows(), TYPE_BY_NAME[kind]
    wanted = np.zeros(entry.nbytes(rows.size), np.uint8)
    assert chunk(entry.number, rows.ctypes.data, wanted.ctypes.data, 0, *rows.shape, None) == wanted.size
    different = np.flatnonzero((encode(rows, kind) != wanted).reshape(-1, entry.block_bytes).any(axis=1))
    assert different.size == 0, f"{different.size} blocks, the first at {different[0]}"


@pytest.mark.parametrize("kind", [*BLOCK_TYPES, "bf16"])
def test_bytes_are_those_of_the_gguf_package(kind: str) -> None:
    rows = hard_rows()
    wanted = quants.quantize(rows, GGMLQuantizationType[kind.upper()]).reshape(-1).view(np.uint8)
    entry = TYPE_BY_NAME[kind]
    different = (encode(rows, kind) != wanted).reshape(-1, entry.block_bytes).any(axis=1)
    assert different.mean() <= 1e-3  # the package rounds some products with one rounding less


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_values_stay_within_half_a_step(kind: str) -> None:
    rows = large_rows()
    back = dequantize(encode(rows, kind), kind).reshape(-1, 32)
    blocks = rows.reshape(-1, 32)
    bits = {"q8_0": 7, "q4_0": 3, "q5_0": 4}.get(kind)
    if bits is None:
        step = (blocks.max(axis=1) - blocks.min(axis=1)) / (15 if kind == "q4_1" else 31)
        clipped = np.float32(0.5)
    else:
        step = np.abs(blocks).max(axis=1) / (127 if kind == "q8_0" else 1 << bits)
        clipped = np.float32(0.5 if kind == "q8_0" else 1.0)  # the side without the largest magnitude ends one short
    rounding = np.abs(blocks).max(axis=1) * 3 * 2.0**-11  # of the scale, over a range of twice that, and the minimum
    assert (np.abs(back - blocks).max(axis=1) <= clipped * step + rounding).all()


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_quantised_values_are_a_fixed_point(kind: str) -> None:
    """What a file holds survives another round exactly."""
    rows = large_rows()
    once = encode(rows, kind)
    values = dequantize(once, kind)
    assert np.array_equal(dequantize(encode(values, kind), kind), values)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, (3, 32), elements=st.floats(-60000, 60000, width=32)))
def test_any_block_gives_finite_values(rows: np.ndarray) -> None:
    for kind in BLOCK_TYPES:
        assert np.isfinite(dequantize(encode(rows, kind), kind)).all()


def test_long_inputs_are_cut_without_a_seam() -> None:
    rows = np.random.default_rng(0).standard_normal((5000, 96)).astype(np.float32)
    whole = encode(rows, "q4_0")
    assert np.array_equal(whole, np.concatenate([encode(part, "q4_0") for part in np.split(rows, 50)]))


def test_what_f16_cannot_hold_is_noticed() -> None:
    big = np.full((1, 32), 7e4, np.float32)
    assert overflows(big, "f16")
    assert overflows(big, "q4_1")
    assert not overflows(big, "q8_0")  # the scale is 551
    assert not overflows(big, "bf16")
    assert overflows(big * np.float32(1e3), "q8_0")
