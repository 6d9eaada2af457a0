"""What one token costs a model in weights: how many of each type are multiplied with, from the file alone.

Embedding and position tables are not in it (one row of them is read), a tied head is. Types that hold less than a few
percent are counted to the commonest: measuring one more rate would cost more than it tells.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from wattwise_runtimes.contracts import Artifact
from wattwise_runtimes.formats.onnx_model import OnnxTensor
from wattwise_runtimes.spec import ModelSpec

_TABLES = ("token_embd.weight", "position_embd.weight")
_LEAST_SHARE = 0.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """weights: (type, count) of all matrices that a token passes, the commonest first. exact: false for a file whose
    tensors' names say nothing, where all weights are taken to be of the file's own type."""

    spec: ModelSpec
    weights: tuple[tuple[str, int], ...]
    exact: bool = True

    @property
    def types(self) -> tuple[str, ...]:
        """The types, the commonest first."""
        return tuple(name for name, _ in self.weights)


def workload_of(artifact: Artifact) -> Workload:
    """Of a checked model on disk."""
    counts = _of_gguf(artifact) if artifact.format == "gguf" else _of_onnx(artifact)
    if counts:
        return Workload(spec=artifact.spec, weights=_merged(counts))
    kind = artifact.quant if artifact.quant != "blocks" else "int4"
    bytes_each = {"fp32": 4.0, "fp16": 2.0, "int8": 1.125, "int4": 0.625, "int2": 0.375}.get(kind, 4.0)
    count = max(1, round(artifact.weights_bytes / bytes_each))
    return Workload(spec=artifact.spec, weights=((kind if kind in _ONNX_TYPES else "fp32", count),), exact=False)


_ONNX_TYPES = ("fp32", "fp16", "int8", "int4", "int2")


def _merged(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    total = sum(counts.values())
    ranked = counts.most_common()
    kept = [(name, n) for name, n in ranked if n >= _LEAST_SHARE * total] or ranked[:1]
    rest = total - sum(n for _, n in kept)
    return ((kept[0][0], kept[0][1] + rest), *kept[1:])


def _of_gguf(artifact: Artifact) -> Counter[str]:
    from wattwise_runtimes.formats.gguf import read_gguf

    tensors = read_gguf(artifact.path).tensors
    skipped = _TABLES if "output.weight" in tensors else _TABLES[1:]
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        if len(tensor.shape) == 2 and tensor.name not in skipped:
            counts[tensor.type] += math.prod(tensor.shape)
    return counts


def _of_onnx(artifact: Artifact) -> Counter[str]:
    """Only for folders of our own converter, whose tensors are named after canonical weights."""
    from wattwise_runtimes.formats.onnx_file import check_onnx_folder
    from wattwise_runtimes.formats.onnx_spec import is_our_folder

    counts: Counter[str] = Counter()
    if not is_our_folder(artifact.path):
        return counts
    tensors = check_onnx_folder(artifact.path).model.initializers
    for name, shape in artifact.spec.tensor_shapes().items():
        if len(shape) == 2 and (name not in _TABLES or (name == _TABLES[0] and artifact.spec.tied_head)):
            counts[_onnx_type(name, tensors)] += math.prod(shape)
    return counts


def _onnx_type(name: str, tensors: Mapping[str, OnnxTensor]) -> str:
    for bits in (2, 4, 8):
        if any(f"{name}_q{bits}{end}" in tensors for end in ("", "_blocks")):
            return f"int{bits}"
    held = tensors.get(name)
    return "fp16" if held is not None and held.dtype == "float16" else "fp32"
