"""The weights of a finished conversion in canonical form, read back from the file a few rows at a time.

GGUF goes through the readers that engines use. An ONNX folder of ours is read by its initializers' names, so that
every block of codes is decoded here by another code path than the one that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from wattwise_convert.checkpoint import TensorSource
from wattwise_devices.errors import ConvertError
from wattwise_runtimes.formats.checked import read_array
from wattwise_runtimes.formats.onnx_tensor import OnnxTensor
from wattwise_runtimes.spec import ModelSpec


def read_written(path: Path, form: str) -> tuple[ModelSpec, dict[str, TensorSource]]:
    """Spec and canonical tensors of what was written."""
    return _gguf(path) if form == "gguf" else _onnx(path)


def _gguf(path: Path) -> tuple[ModelSpec, dict[str, TensorSource]]:
    from wattwise_runtimes.formats.gguf import read_gguf
    from wattwise_runtimes.formats.gguf_spec import canonical_tensors, spec_from_gguf

    file = read_gguf(path)
    spec = spec_from_gguf(file)
    tensors = canonical_tensors(file, spec)
    return spec, {name: TensorSource(name, t.shape, t.dtype, t.read_rows) for name, t in tensors.items()}


def _onnx(folder: Path) -> tuple[ModelSpec, dict[str, TensorSource]]:
    import onnx
    from onnx import numpy_helper

    from wattwise_runtimes.formats.onnx_file import check_onnx_folder
    from wattwise_runtimes.formats.onnx_spec import spec_from_onnx_folder

    checked = check_onnx_folder(folder)
    spec = spec_from_onnx_folder(folder)
    inline = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(checked.model_path, load_external_data=False).graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    }
    stored = checked.model.initializers
    return spec, {name: _initializer(name, shape, stored, inline) for name, shape in spec.tensor_shapes().items()}


def _initializer(
    name: str, shape: tuple[int, ...], stored: Mapping[str, OnnxTensor], inline: Mapping[str, np.ndarray]
) -> TensorSource:
    if name in inline:
        return TensorSource.from_array(name, inline[name].reshape(shape))
    for key, kind, dtype in ((name, "f32", np.dtype("<f4")), (f"{name}_f16", "f16", np.dtype("<f2"))):
        if key in stored:
            return TensorSource(name, shape, kind, _Rows(stored[key], dtype, shape[1:]).floats)
    for bits in (2, 4, 8):
        codes = stored.get(f"{name}_q{bits}") or stored.get(f"{name}_q{bits}_blocks")
        if codes is not None:
            scales = stored.get(f"{name}_scales") or stored[f"{name}_scales_blocks"]
            zeros = stored.get(f"{name}_zeros") or stored.get(f"{name}_zeros_blocks")
            return TensorSource(name, shape, f"int{bits}", _Blocks(bits, shape, codes, scales, zeros).floats)
    raise ConvertError(f"the ONNX folder has no initializer for {name!r}")


class _Rows:
    """Rows of an external initializer."""

    def __init__(self, tensor: OnnxTensor, dtype: np.dtype, row_shape: tuple[int, ...]) -> None:
        self._tensor, self._dtype, self._row_shape = tensor, dtype, row_shape
        self._row_bytes = int(np.prod(row_shape, dtype=np.int64)) * dtype.itemsize

    def values(self, start: int, stop: int) -> np.ndarray:
        """As stored."""
        t = self._tensor
        if t.location is None:
            raise ConvertError(f"the initializer {t.name!r} is inside the model file; expected beside it")
        length = (stop - start) * self._row_bytes
        raw = read_array(t.location, t.offset + start * self._row_bytes, length, f"data of {t.name!r}")
        return np.frombuffer(raw, self._dtype).reshape(stop - start, *self._row_shape)

    def floats(self, start: int, stop: int) -> np.ndarray:
        """As float32."""
        return self.values(start, stop).astype(np.float32)


class _Blocks:
    """A matrix in blocks of codes: w = scale * (code - zero), codes packed low bits first."""

    def __init__(
        self, bits: int, shape: tuple[int, ...], codes: OnnxTensor, scales: OnnxTensor, zeros: OnnxTensor | None
    ) -> None:
        rows, self._k = shape
        self._bits = bits
        self._blocks = scales.nbytes // 4 // rows
        bytes_, float_ = np.dtype(np.uint8), np.dtype("<f4")
        self._codes = _Rows(codes, bytes_, (codes.nbytes // rows,))
        self._scales = _Rows(scales, float_, (self._blocks,))
        self._zeros = None if zeros is None else _Rows(zeros, bytes_, (zeros.nbytes // rows,))

    def floats(self, start: int, stop: int) -> np.ndarray:
        """Rows as float32."""
        n = stop - start
        codes = self._unpack(self._codes.values(start, stop)).reshape(n, self._blocks, -1)
        scales = self._scales.values(start, stop)[..., None]
        zero: np.ndarray | np.float32 = np.float32(1 << (self._bits - 1))
        if self._zeros is not None:
            zero = self._unpack(self._zeros.values(start, stop))[:, : self._blocks, None]
        return ((codes - zero) * scales).reshape(n, -1)[:, : self._k]

    def _unpack(self, packed: np.ndarray) -> np.ndarray:
        mask = (1 << self._bits) - 1
        parts = [(packed >> shift) & mask for shift in range(0, 8, self._bits)]
        return np.stack(parts, axis=-1).reshape(len(packed), -1).astype(np.float32)
