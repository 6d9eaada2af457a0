"""From canonical tensors to initializers: chooses how each weight is stored and writes it to the data file.

A matrix stays [out, in]: FusedMatMul multiplies by its transpose, so nothing is transposed on the way and a tied
head reads the very rows that the embedding does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_convert.onnx.data_file import DataFile, same_bytes
from wattwise_convert.onnx.graph import Graph
from wattwise_convert.onnx.quantize import quantize_rows
from wattwise_devices.errors import ConvertError

_LARGEST_F16 = 65504.0
ACCURACY_LEVEL_INT8 = 4  # activations become int8 inside the kernel; without it 2- and 8-bit decode is 50x slower


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How matrices are stored. bits: 32, 16 (float), 8, 4 or 2 (blocks). head_bits: the same for embedding and head."""

    bits: int
    head_bits: int
    block: int
    zero_points: bool

    def of(self, name: str) -> int:
        """Bits of this tensor."""
        return self.head_bits if name in ("token_embd.weight", "output.weight") else self.bits


class Weights:
    """Puts the weights of one checkpoint into one graph, each one when the graph first needs it."""

    def __init__(self, checkpoint: Checkpoint, graph: Graph, data: DataFile, storage: Storage) -> None:
        self._tensors = checkpoint.tensors
        self._graph, self._data, self._storage = graph, data, storage
        # (tensor, bits) -> [float data] or [codes, scales, zeros?]; a tied matrix may be stored in two ways
        self._stored: dict[tuple[str, int], list[TensorProto]] = {}
        self.notes: list[str] = []

    def vector(self, name: str) -> str:
        """A norm weight or bias, always float32 and inside the model file."""
        return self._graph.constant(name, self._tensors[name].read())

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds this tensor."""
        return name in self._tensors

    def linear(self, x: str, name: str, output: str, weight: str | None = None) -> str:
        """y = x @ W.T + b. name: canonical, without ".weight". weight: another tensor to read (tied head)."""
        source = self._tensors[weight or f"{name}.weight"]
        bias = f"{name}.bias" if self.has(f"{name}.bias") else None
        bits = self._storage.of(source.name)
        if bits <= 8:
            return self._block_linear(x, source, output, bits, bias)
        matrix = self._float(source, bits)
        if bits == 16:
            matrix = self._graph.node("Cast", [matrix], f"{output}/weight_f32", to=TensorProto.FLOAT)
        y = self._graph.node("FusedMatMul", [x, matrix], f"{output}/product" if bias else output, transB=1)
        return self._graph.node("Add", [y, self.vector(bias)], output) if bias else y

    def embedding(self, ids: str, name: str, output: str) -> str:
        """Rows of a table, float32."""
        source = self._tensors[name]
        bits = self._storage.of(name) if name == "token_embd.weight" else max(16, self._storage.bits)
        if bits <= 8 and source.shape[1] % self._storage.block:
            self.notes.append(
                f"{name} is stored as float16: its width {source.shape[1]} is no multiple of {self._storage.block}"
            )
            bits = 16
        if bits <= 8:
            return self._block_embedding(ids, source, output, bits)
        table = self._float(source, bits)
        if bits == 32:
            return self._graph.node("Gather", [table, ids], output)
        rows = self._graph.node("Gather", [table, ids], f"{output}/f16")
        return self._graph.node("Cast", [rows], output, to=TensorProto.FLOAT)

    def _float(self, source: TensorSource, bits: int) -> str:
        if (source.name, bits) not in self._stored:
            dtype, element = (TensorProto.FLOAT, np.float32) if bits == 32 else (TensorProto.FLOAT16, np.float16)
            key = source.name if bits == 32 else f"{source.name}_f16"
            tensor = self._data.add(key, dtype, source.shape, _as(source, element))
            self._graph.initializer(tensor)
            self._stored[source.name, bits] = [tensor]
        return self._stored[source.name, bits][0].name

    def _block_linear(self, x: str, source: TensorSource, output: str, bits: int, bias: str | None) -> str:
        entries = self._blocks(source, bits)
        rows, k = source.shape
        names = []
        for tensor in entries:  # entries have table shapes; this operator wants blocks, or flat scales
            dims = list(tensor.dims)
            if tensor is entries[0]:
                blocks = -(-k // self._storage.block)
                dims = [rows, blocks, dims[1] // blocks]
            names.append(self._graph.initializer(same_bytes(tensor, f"{tensor.name}_blocks", dims)))
        inputs = [x, *names, *[""] * (3 - len(names))]
        if bias:
            inputs += ["", self.vector(bias)]
        while not inputs[-1]:
            inputs.pop()
        return self._graph.node(
            "MatMulNBits", inputs, output, K=k, N=rows, bits=bits, block_size=self._storage.block,
            accuracy_level=ACCURACY_LEVEL_INT8,
        )  # fmt: skip

    def _block_embedding(self, ids: str, source: TensorSource, output: str, bits: int) -> str:
        codes, scales, *zeros = (self._graph.initializer(t) for t in self._blocks(source, bits))
        return self._graph.node(
            "GatherBlockQuantized", [codes, ids, scales, *zeros], output, bits=bits,
            block_size=self._storage.block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def _blocks(self, source: TensorSource, bits: int) -> list[TensorProto]:
        """Entries of the codes, scales and zero points of a matrix, written on first use, as two-dimensional tables."""
        name, block = source.name, self._storage.block
        if (name, bits) not in self._stored:
            rows, blocks = source.shape[0], -(-source.shape[1] // block)
            scales: list[np.ndarray] = []
            zeros: list[np.ndarray] = []

            def codes() -> Iterator[np.ndarray]:
                for part in finite_blocks(source):
                    packed = quantize_rows(part, bits=bits, block=block, zero_points=self._storage.zero_points)
                    scales.append(packed.scales)
                    if packed.zeros is not None:
                        zeros.append(packed.zeros)
                    yield packed.codes

            entries = [
                self._data.add(f"{name}_q{bits}", TensorProto.UINT8, (rows, blocks * block * bits // 8), codes()),
                self._data.add(f"{name}_scales", TensorProto.FLOAT, (rows, blocks), scales),
            ]
            if zeros:
                width = -(-blocks * bits // 8)
                entries.append(self._data.add(f"{name}_zeros", TensorProto.UINT8, (rows, width), zeros))
            self._stored[name, bits] = entries
        return self._stored[name, bits]


def finite_blocks(source: TensorSource) -> Iterator[np.ndarray]:
    """Rows of a tensor, a block at a time; not-a-number and infinity are refused by name."""
    for start, part in source.blocks():
        if not np.isfinite(part).all():
            row = start + int(np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(axis=1))[0])
            raise ConvertError(f"{source.name} holds infinity or not-a-number in row {row}; the checkpoint is damaged.")
        yield part


def _as(source: TensorSource, element: type) -> Iterator[np.ndarray]:
    for part in finite_blocks(source):
        if element is np.float16 and np.abs(part).max() > _LARGEST_F16:
            raise ConvertError(
                f"{source.name} holds {np.abs(part).max():.4g}, more than float16 can ({_LARGEST_F16:.0f}). Take fp32."
            )
        yield part.astype(element)
