"""llama.cpp's own plan of a model and its contexts, with nothing allocated (`no_alloc`).

The model part (metadata, vocabulary, the place of every weight) is kept for the next question about the same file,
because a planner asks about many contexts and a large vocabulary takes a second to read. `release` gives it back;
the backend does so before it loads a model in earnest.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattwise_devices.errors import BackendError, LoadError
from wattwise_devices.process_memory import resident_memory
from wattwise_runtimes.contracts import LoadSpec
from wattwise_runtimes.engines.llamacpp import log, params
from wattwise_runtimes.engines.llamacpp.evidence import read_buffers, read_placements
from wattwise_runtimes.engines.llamacpp.ggml import cpu_buffer_overrides
from wattwise_runtimes.engines.llamacpp.native import native
from wattwise_runtimes.spec import ModelSpec

Stamp = tuple[int, int]  # modification time in ns and size of a file: what a cached answer is good for
_TENSOR_ALIGNMENT = 32  # of ggml's CPU buffers


@dataclass(frozen=True, slots=True)
class DryModel:
    """A model without weights. placements: (tensor, buffer type) of every weight that loading would make."""

    key: tuple[str, Stamp]
    handle: int
    placements: frozenset[tuple[str, str]]
    tables_bytes: int
    overrides: Any  # the handle refers to this array

    def weights_bytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes of all weights, given the size of each tensor; one in two buffer types counts twice."""
        return sum(-(-sizes[name] // _TENSOR_ALIGNMENT) * _TENSOR_ALIGNMENT for name, _ in self.placements)


_held: list[DryModel] = []  # one at most


def dry_model(path: str, stamp: Stamp) -> DryModel:
    """The dry model of this file. The file must have been checked."""
    with log.Capture() as capture:
        if _held and _held[0].key == (path, stamp):
            return _held[0]
        release()
        lib = native()
        log.forget_recent()
        overrides = cpu_buffer_overrides(lib)
        model_params = params.model_params(lib)
        model_params.no_alloc = True
        model_params.tensor_buft_overrides = params.pointer(overrides)
        before = private_bytes()
        handle = lib.model_load(path.encode(), model_params)
        if not handle:
            raise LoadError(f"llama.cpp cannot read {path}: {log.last_words()}")
        grown = max(0, private_bytes() - before)
        made = DryModel((path, stamp), handle, frozenset(read_placements(capture.lines)), grown, overrides)
        _held.append(made)
        return made


@functools.lru_cache(maxsize=256)
def dry_context(path: str, stamp: Stamp, spec: ModelSpec, load: LoadSpec) -> tuple[int, int]:
    """(compute buffer, tables) in bytes of a context on this file."""
    with log.Capture() as capture:
        model, lib = dry_model(path, stamp), native()
        before = private_bytes()
        context = lib.context_new(model.handle, params.context_params(lib, spec, load))
        if not context:
            raise BackendError(f"llama.cpp cannot make a context for {path}: {log.last_words()}")
        grown = private_bytes() - before
        lib.context_free(context)
    buffers = read_buffers(capture.lines)
    return sum(buffers.compute.values()), max(0, grown - sum(buffers.output.values()))


def release() -> None:
    """Give the held model back."""
    while _held:
        native().model_free(_held.pop().handle)


atexit.register(release)


def private_bytes() -> int:
    """Resident anonymous bytes of this process, after giving free heap pages back, so that growth means use."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
    memory = resident_memory()
    return memory.anonymous_bytes or memory.resident_bytes or 0


@functools.cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim  # glibc's; elsewhere the figure is a little less exact
    except (AttributeError, OSError):
        return None
