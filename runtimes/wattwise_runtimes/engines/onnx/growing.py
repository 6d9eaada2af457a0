"""Older graphs, whose cache grows: each run takes the past and returns a longer present, as new tensors.

Reduced on purpose: chains and rewinding only. No trees, no eviction from the middle, no export; every step copies
the cache, so decode slows down with length. What it computes is right all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wattwise_devices.errors import BackendError, ContextOverflow, PlanError
from wattwise_runtimes.contracts import (
    Batch,
    Capabilities,
    ForwardCancelled,
    KVView,
    Ledger,
    LoadSpec,
    refuse_thread_change,
)
from wattwise_runtimes.engines.onnx import memory
from wattwise_runtimes.engines.onnx import session as ort_session
from wattwise_runtimes.engines.onnx.signature import Signature
from wattwise_runtimes.formats.onnx_file import OnnxFolder
from wattwise_runtimes.spec import ModelSpec

_REASON = "this graph grows its cache by copying it"
_NUMPY = {"int64": np.int64, "int32": np.int32}
GROWING_CAPABILITIES = Capabilities(keys=True)


class GrowingKV:
    """Arrays [..., rows, head size] per layer, one for each cache input; rows have consecutive positions."""

    def __init__(self, spec: ModelSpec, signature: Signature, capacity: int) -> None:
        self._capacity, self._combined = capacity, signature.combined
        head = (2, 1) if signature.combined else (1,)
        shape = (*head, spec.kv_heads, 0, spec.head_dim)
        self._layers = spec.layers
        self._row_bytes = np.dtype(signature.kv_dtype).itemsize * spec.kv_row_elements()
        self.parts = [[np.zeros(shape, signature.kv_dtype) for _ in names] for names in signature.past]

    @property
    def length(self) -> int:
        return self.parts[0][0].shape[-2]

    @property
    def positions(self) -> np.ndarray:
        return np.arange(self.length, dtype=np.int64)

    @property
    def next_position(self) -> int:
        return self.length

    @property
    def capacity_tokens(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        """At capacity, twice: the past and the present of the same run."""
        return 2 * self._row_bytes * self._capacity

    def clear(self) -> None:
        self.truncate(0)

    def truncate(self, position: int) -> None:
        if position < self.length:
            self.parts = [[part[..., :position, :].copy() for part in layer] for layer in self.parts]

    def drop(self, positions: Sequence[int]) -> None:
        raise PlanError(f"rows cannot be dropped here: {_REASON}", clash=("drop", _REASON))

    def drop_by_head(self, keep: np.ndarray) -> None:
        raise PlanError(f"rows cannot be dropped by head here: {_REASON}", clash=("drop_by_head", _REASON))

    def shift(self, start: int, stop: int, by: int) -> None:
        raise PlanError(f"keys cannot be moved here: {_REASON}", clash=("shift", _REASON))

    def accept(self, path: Sequence[int]) -> None:
        raise ValueError("accept without a tree batch before it")

    def view(self) -> KVView:
        def keys(layer: int) -> np.ndarray:
            part = self.parts[layer][0]
            return (part[0, 0] if self._combined else part[0]).astype(np.float32)

        return KVView(positions=self.positions, layers=self._layers, keys=keys)

    def export(self, start: int = 0, stop: int | None = None) -> bytes:
        raise PlanError(f"rows cannot be exported here: {_REASON}", clash=("export", _REASON))

    def restore(self, data: bytes) -> None:
        raise PlanError(f"rows cannot be restored here: {_REASON}", clash=("restore", _REASON))


class GrowingEngine:
    """Engine over a graph with a growing cache."""

    def __init__(self, session: Any, signature: Signature, spec: ModelSpec, load: LoadSpec, ledger: Ledger) -> None:
        self.spec, self.kv = spec, GrowingKV(spec, signature, load.context)
        self.capabilities = GROWING_CAPABILITIES
        self._session, self._signature, self._load, self._ledger = session, signature, load, ledger
        self._limit = min(load.context, spec.context)

    def forward(self, batch: Batch, cancelled: Callable[[], bool] | None = None) -> np.ndarray:
        tokens = self._checked(batch)
        wanted = batch.logit_rows()
        out = np.empty((len(wanted), self.spec.vocab), np.float32)
        filled = 0
        for start in range(0, len(tokens), self._load.chunk):
            if cancelled is not None and cancelled():
                raise ForwardCancelled(start)
            stop = min(start + self._load.chunk, len(tokens))
            inside = [w - start for w in wanted if start <= w < stop]
            logits = self._run(tokens[start:stop])
            if self._signature.last_row_only and inside not in ([], [stop - start - 1]):
                raise PlanError("this graph has logits of the last token only", clash=("logits", "pruned head"))
            out[filled : filled + len(inside)] = logits[-1:] if self._signature.last_row_only else logits[inside]
            filled += len(inside)
        return out

    def set_threads(self, threads: int, threads_batch: int | None = None) -> None:
        """A session's threads are started with it and stay as they are."""
        raise refuse_thread_change("onnx")

    def nbytes(self) -> Ledger:
        return self._ledger

    def where(self) -> dict[str, Any]:
        if self._session is None:
            raise BackendError("this engine is closed")
        providers = self._session.get_providers()
        library = f"onnxruntime {ort_session.onnxruntime().__version__}"
        return {"prefill": "cpu", "decode": "cpu", "library": library, "providers": providers}

    def close(self) -> None:
        self._session = None
        self.kv.clear()

    def _run(self, tokens: np.ndarray) -> np.ndarray:
        """Logits [rows, vocab] of one run; the present becomes the past."""
        s, n, held = self._signature, len(tokens), self.kv.length
        feeds = {s.ids.name: tokens[None].astype(_NUMPY[s.ids.dtype])}
        if s.positions is not None:
            feeds[s.positions.name] = np.arange(held, held + n, dtype=_NUMPY[s.positions.dtype])[None]
        if s.mask is not None:
            feeds[s.mask.name] = np.ones((1, held + n), _NUMPY[s.mask.dtype])
        for names, parts in zip(s.past, self.kv.parts, strict=True):
            feeds.update(zip(names, parts, strict=True))
        names = [s.logits.name, *(name for layer in s.present for name in layer)]
        logits, *present = ort_session.run_feeds(self._session, names, feeds)
        per_layer = len(s.present[0])
        self.kv.parts = [present[i : i + per_layer] for i in range(0, len(present), per_layer)]
        if self.kv.length != held + n:
            raise BackendError(f"the graph returned {self.kv.length} cache rows after {held + n} tokens")
        return logits[0].astype(np.float32, copy=False)

    def _checked(self, batch: Batch) -> np.ndarray:
        if self._session is None:
            raise BackendError("this engine is closed")
        if batch.parents is not None:
            raise PlanError(f"trees are not available: {_REASON}", clash=("tree batch", _REASON))
        tokens = np.asarray(batch.tokens, np.int64)
        if tokens.size == 0 or tokens.min() < 0 or tokens.max() >= self.spec.vocab:
            raise ValueError(f"token ids must be 0..{self.spec.vocab - 1} and at least one, got {tokens[:8].tolist()}")
        if self.kv.length + len(tokens) > self._limit:
            raise ContextOverflow(prompt_tokens=len(tokens), limit=self._limit, held_tokens=self.kv.length)
        return tokens


def load_growing(folder: OnnxFolder, signature: Signature, spec: ModelSpec, load: LoadSpec) -> GrowingEngine:
    """Open the folder's graph."""
    session = ort_session.open_session(folder.model_path, folder=folder.path, threads=load.threads)
    return GrowingEngine(session, signature, spec, load, memory.predict(folder, signature, spec, load))
