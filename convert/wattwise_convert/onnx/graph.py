"""A graph under construction: nodes in order, initializers, inputs and outputs. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10
MS = "com.microsoft"  # domain of onnxruntime's own operators
_MS_OPS = frozenset(
    {"FastGelu", "FusedMatMul", "GatherBlockQuantized", "GroupQueryAttention", "MatMulNBits", "QuickGelu",
     "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
)  # fmt: skip


class Graph:
    """Collects a decoder graph; `model()` closes it."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, dtype: int, dims: Sequence[int | str]) -> str:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(dims)))
        return name

    def output(self, name: str, dtype: int, dims: Sequence[int | str]) -> None:
        """Declare a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(dims)))

    def constant(self, name: str, value: np.ndarray) -> str:
        """A small initializer with its bytes in the model file (once per name)."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(value, name)
        return name

    def initializer(self, tensor: TensorProto) -> str:
        """A ready tensor entry, usually one that points into the data file."""
        if tensor.name in self._initializers:
            raise ValueError(f"initializer {tensor.name} exists twice")
        self._initializers[tensor.name] = tensor
        return tensor.name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output of interest; returns that output's name."""
        return self.nodes(op, inputs, [output], name=output, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], *, name: str, **attributes: Any
    ) -> Sequence[str]:
        """Append a node with several outputs ("" for those not wanted)."""
        domain = MS if op in _MS_OPS else ""
        self._nodes.append(helper.make_node(op, list(inputs), list(outputs), name=name, domain=domain, **attributes))
        return outputs

    def model(self, producer_version: str) -> ModelProto:
        """The finished model."""
        graph = helper.make_graph(
            self._nodes, "decoder", self._inputs, self._outputs, initializer=list(self._initializers.values())
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MS, 1)],
            ir_version=IR_VERSION,
            producer_name="wattwise",
            producer_version=producer_version,
        )
