"""The engines that the conformance test runs: one row each. Adding an engine is adding a row.

A row makes a loaded engine from canonical weights. `folder` is a fresh temporary folder for whatever file the
engine wants; `tolerance` is the largest allowed logit error, in standard deviations of the reference's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wattwise_runtimes.contracts import Engine, LoadSpec
from wattwise_runtimes.spec import ModelSpec

Make = Callable[[ModelSpec, Mapping[str, np.ndarray], LoadSpec, Path], Engine]


@dataclass(frozen=True)
class Row:
    """One engine: its name, how to make it, its precision (looser by architecture where it must be), what it needs."""

    name: str
    make: Make
    tolerance: float
    needs: str | None = None
    looser: Mapping[str, float] = field(default_factory=dict)


def _reference(spec: ModelSpec, weights: Mapping[str, np.ndarray], load: LoadSpec, folder: Path) -> Engine:
    from wattwise_runtimes.engines.reference import ReferenceEngine

    return ReferenceEngine(spec, weights, load)


def _llamacpp(spec: ModelSpec, weights: Mapping[str, np.ndarray], load: LoadSpec, folder: Path) -> Engine:
    from support.gguf_files import write_tiny_gguf
    from wattwise_runtimes.contracts import Artifact
    from wattwise_runtimes.engines.llamacpp import BACKEND

    path = write_tiny_gguf(folder / "model.gguf", spec, weights)
    return BACKEND.load(Artifact(path=path, format="gguf", spec=spec, weights_bytes=path.stat().st_size), load)


def _llamacpp_f16(spec: ModelSpec, weights: Mapping[str, np.ndarray], load: LoadSpec, folder: Path) -> Engine:
    return _llamacpp(spec, weights, replace(load, kv_type="f16"), folder)


def _onnx(spec: ModelSpec, weights: Mapping[str, np.ndarray], load: LoadSpec, folder: Path) -> Engine:
    from support.onnx_folders import write_onnx_folder
    from wattwise_runtimes.artifact import open_artifact
    from wattwise_runtimes.engines.onnx import BACKEND

    return BACKEND.load(open_artifact(write_onnx_folder(folder / "onnx", spec, weights)), load)


def _onnx_int8(spec: ModelSpec, weights: Mapping[str, np.ndarray], load: LoadSpec, folder: Path) -> Engine:
    return _onnx(spec, weights, replace(load, kv_type="int8"), folder)


ENGINES: list[Row] = [
    Row("reference", _reference, tolerance=1e-5),
    # ggml looks GELU up in a table of f16 values
    Row("llamacpp", _llamacpp, tolerance=1e-3, needs="llama_cpp", looser={"gemma2": 2e-3, "gemma3_text": 2e-3}),
    # what people use: f16 rows, and flash attention, which rounds to f16 inside
    Row("llamacpp-f16", _llamacpp_f16, tolerance=3e-2, needs="llama_cpp"),
    Row("onnx", _onnx, tolerance=1e-4, needs="onnxruntime"),
    # codes of 8 bits with constant scales: rows differ by half a step, so everything after them does
    Row("onnx-int8", _onnx_int8, tolerance=1e-1, needs="onnxruntime", looser={"gemma2": 2e-1}),
]
