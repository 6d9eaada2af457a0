"""The few ggml functions that llama-cpp-python does not bind: devices, buffer types, quantising, tensors of a graph.

Declared here through ctypes on the libraries inside the llama_cpp package. Nothing else in the program calls
ggml directly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattwise_devices.errors import BackendError
from wattwise_runtimes.engines.llamacpp.native import Native, native
from wattwise_runtimes.formats.gguf_types import TensorType

_SOURCES_AT, _DATA_AT, _NAME_AT = 152, 248, 256  # bytes into ggml_tensor where pointers have 64 bits
_MOST_SOURCES = 10  # GGML_MAX_SRC
_DEVICE_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel", 4: "meta"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One compute device as ggml lists it. Memory is what the backend reports, 0 where it does not."""

    name: str
    description: str
    kind: str
    free_bytes: int
    total_bytes: int


class TensorBufferOverride(ctypes.Structure):
    """llama_model_tensor_buft_override: tensors whose name matches go to this buffer type."""

    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


def _function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = library[name]  # a function object of our own: the package's keep their declarations
    function.restype, function.argtypes = result, list(arguments)
    return function


class RunningTensors:
    """Reading tensors of a graph that is being computed, from inside its evaluation callback; tensors are addresses.

    name(tensor), elements(tensor), rows(tensor), nbytes(tensor), is_contiguous(tensor): what ggml says of it.
    copy(tensor, address, offset, nbytes): bytes out of it; ggml ends the process when asked for more than there are.
    """

    def __init__(self, native: Native) -> None:
        pointer, size, count = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
        lib = native.ggml
        self.name = _function(lib, "ggml_get_name", ctypes.c_char_p, pointer)
        self.elements = _function(lib, "ggml_nelements", count, pointer)
        self.rows = _function(lib, "ggml_nrows", count, pointer)
        self.nbytes = _function(lib, "ggml_nbytes", size, pointer)
        self.is_contiguous = _function(lib, "ggml_is_contiguous", ctypes.c_bool, pointer)
        self.copy = _function(lib, "ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self._name_address = _function(lib, "ggml_get_name", pointer, pointer)
        self._data_address = _function(lib, "ggml_get_data", pointer, pointer)

    def has_known_layout(self, tensor: int, nodes: Set[int]) -> bool:
        """Whether `source` may be used: ggml has no function for the sources of a tensor, so the struct is read.

        tensor: one with exactly two sources of which the first is among `nodes`, the nodes computed before it.
        """
        if self._name_address(tensor) - tensor != _NAME_AT:  # so everything below lies inside the struct
            return False
        data = ctypes.c_size_t.from_address(tensor + _DATA_AT).value
        first, second, *others = (ctypes.c_size_t * _MOST_SOURCES).from_address(tensor + _SOURCES_AT)
        return data == self._data_address(tensor) and first in nodes and second > 0 and not any(others)

    def source(self, tensor: int, index: int) -> int:
        """One of the tensors that this one is computed from."""
        return ctypes.c_size_t.from_address(tensor + _SOURCES_AT + index * ctypes.sizeof(ctypes.c_void_p)).value


def devices(native: Native) -> list[Device]:
    """Every device of every loaded backend, in ggml's order."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    lib = native.ggml
    count = _function(lib, "ggml_backend_dev_count", size)()
    get = _function(lib, "ggml_backend_dev_get", pointer, size)
    name = _function(lib, "ggml_backend_dev_name", ctypes.c_char_p, pointer)
    description = _function(lib, "ggml_backend_dev_description", ctypes.c_char_p, pointer)
    kind = _function(lib, "ggml_backend_dev_type", ctypes.c_int, pointer)
    memory = _function(lib, "ggml_backend_dev_memory", None, pointer, ctypes.POINTER(size), ctypes.POINTER(size))
    found: list[Device] = []
    for index in range(count):
        device = get(index)
        free, total = size(), size()
        memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            Device(
                name=name(device).decode(),
                description=description(device).decode(),
                kind=_DEVICE_KINDS.get(kind(device), "other"),
                free_bytes=free.value,
                total_bytes=total.value,
            )
        )
    return found


def cpu_buffer_overrides(native: Native) -> ctypes.Array[TensorBufferOverride]:
    """Overrides that send every tensor where it goes anyway on a CPU, but make the loader name the place."""
    buffer_type = _function(native.ggml, "ggml_backend_cpu_buffer_type", ctypes.c_void_p)()
    return (TensorBufferOverride * 2)(TensorBufferOverride(b".*", buffer_type), TensorBufferOverride(None, None))


def quantise_rows(rows: np.ndarray, kind: TensorType) -> np.ndarray:
    """float32 rows in one of ggml's tensor types, uint8 [rows, bytes of a row]; all weights count alike."""
    rows = np.ascontiguousarray(rows, np.float32)
    count, columns = rows.shape
    if columns % kind.block:  # ggml would write past the end
        raise ValueError(f"rows of {columns} weights cannot be stored as {kind.name}: its blocks are {kind.block}")
    out = np.zeros((count, kind.nbytes(columns)), np.uint8)
    importance = np.ones(columns, np.float32)  # the coarsest types insist on one
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    quantise = _function(
        native().ggml, "ggml_quantize_chunk", size, ctypes.c_int, pointer, pointer, *[ctypes.c_int64] * 3, pointer
    )
    written = quantise(kind.number, rows.ctypes.data, out.ctypes.data, 0, count, columns, importance.ctypes.data)
    if written != out.nbytes:
        raise BackendError(f"ggml wrote {written} bytes for rows of {kind.name}, expected {out.nbytes}")
    return out
