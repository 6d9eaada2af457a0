"""ONNX folders from weights in memory, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_convert.onnx import export
from wattwise_runtimes.spec import ModelSpec


def memory_checkpoint(spec: ModelSpec, weights: Mapping[str, np.ndarray]) -> Checkpoint:
    """A checkpoint over arrays, without a tokenizer."""
    tensors = {name: TensorSource.from_array(name, array) for name, array in weights.items()}
    return Checkpoint(spec=spec, tensors=tensors, tokenizer=None, origin=Path("memory"))


def write_onnx_folder(folder: Path, spec: ModelSpec, weights: Mapping[str, np.ndarray], **options: Any) -> Path:
    """Export to `folder`, as fp32 unless `options` say otherwise."""
    export(memory_checkpoint(spec, weights), folder, **{"quant": "fp32", **options})
    return folder
