"""The forward pass over a graph whose KV cache is a fixed buffer: chunks, trees, chosen rows, cancellation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from wattwise_devices.errors import BackendError, ContextOverflow, PlanError
from wattwise_runtimes.contracts import (
    Batch,
    Capabilities,
    ForwardCancelled,
    Ledger,
    LoadSpec,
    refuse_thread_change,
)
from wattwise_runtimes.engines.onnx import session as ort_session
from wattwise_runtimes.engines.onnx.buffers import Bound
from wattwise_runtimes.engines.onnx.kv import OnnxKV
from wattwise_runtimes.engines.onnx.signature import Signature
from wattwise_runtimes.spec import ModelSpec

_WATCH_FROM_TOKENS = 32  # shorter runs end sooner than a watcher is worth
_WATCH_EVERY_S = 0.02
CANCEL_WITHIN_MS = 100.0  # 4 to 16 ms measured on a 400M model: the flag is seen between two nodes


class OnnxEngine:
    """Engine over one session with shared past and present buffers."""

    def __init__(
        self, session: Any, signature: Signature, spec: ModelSpec, load: LoadSpec, kv: OnnxKV,
        bound: Bound, capabilities: Capabilities, ledger: Ledger, huge_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.spec, self.capabilities, self.kv = spec, capabilities, kv
        self._session, self._signature, self._load = session, signature, load
        self._bound, self._ledger, self._huge_bytes = bound, ledger, huge_bytes
        self._closed = False

    def forward(self, batch: Batch, cancelled: Callable[[], bool] | None = None) -> np.ndarray:
        tokens, wanted = self._checked(batch), batch.logit_rows()
        positions = self.kv.next_position + np.asarray(batch.depths(), np.int64)
        self._check_room(len(tokens), int(positions.max()))
        if batch.parents is not None:
            out = np.empty((len(wanted), self.spec.vocab), np.float32)
            self._run(tokens, positions, wanted, out if wanted else None, batch.parents, None)
            self.kv.appended(positions, tree=batch.parents)
            return out
        if len(tokens) == 1:
            if cancelled is not None and cancelled():
                raise ForwardCancelled(0)
            logits = self._run(tokens, positions, [0], None, None, None)
            self.kv.appended(positions)
            return logits if wanted else logits[:0]
        return self._chain(tokens, positions, wanted, cancelled)

    def set_threads(self, threads: int, threads_batch: int | None = None) -> None:
        """A session's threads are started with it and stay as they are."""
        raise refuse_thread_change("onnx")

    def nbytes(self) -> Ledger:
        return self._ledger

    def where(self) -> dict[str, Any]:
        self._check_open()
        assert self._session is not None  # open
        providers = self._session.get_providers()
        device = "cpu" if providers == ort_session.PROVIDERS else ", ".join(providers)
        library = f"onnxruntime {ort_session.onnxruntime().__version__}"
        return {
            "prefill": device, "decode": device, "library": library, "providers": providers,
            "huge_pages_bytes": self._huge_bytes,
        }  # fmt: skip

    def close(self) -> None:
        self._closed = True
        self._session = self._bound = None
        self.kv.release()

    def _chain(
        self, tokens: np.ndarray, positions: np.ndarray, wanted: list[int], cancelled: Callable[[], bool] | None
    ) -> np.ndarray:
        out = np.empty((len(wanted), self.spec.vocab), np.float32)
        filled = 0
        for start, stop in self._cuts(len(tokens), wanted):
            if cancelled is not None and cancelled():
                raise ForwardCancelled(start)
            inside = [w - start for w in wanted if start <= w < stop]
            target = out[filled : filled + len(inside)] if inside else None
            try:
                self._run(tokens[start:stop], positions[start:stop], inside, target, None, cancelled)
            except ForwardCancelled:
                raise ForwardCancelled(start) from None
            self.kv.appended(positions[start:stop])
            filled += len(inside)
        return out

    def _cuts(self, n: int, wanted: list[int]) -> list[tuple[int, int]]:
        """Chunks of a chain; where a graph has logits of the last row only, each wanted row ends one."""
        ends = {*range(self._load.chunk, n, self._load.chunk), n}
        if self._signature.last_row_only:
            ends.update(w + 1 for w in wanted)
        stops = sorted(ends)
        return list(zip([0, *stops[:-1]], stops, strict=True))

    def _run(
        self, tokens: np.ndarray, positions: np.ndarray, rows: list[int], out: np.ndarray | None,
        parents: Any, cancelled: Callable[[], bool] | None,
    ) -> np.ndarray:  # fmt: skip
        """Append tokens to the buffers (not yet to the count); logits of the rows, in `out` where it is given."""
        bound, n = self._bound, len(tokens)
        assert bound is not None  # checked by `_checked`
        bound.feed(tokens, positions, parents)
        if self._signature.rows is not None:
            bound.want(rows or [n - 1])
            self._execute(n, cancelled)
            logits = bound.logits()
        else:
            bound.want([n - 1] if self._signature.last_row_only else list(range(n)))
            self._execute(n, cancelled)
            logits = bound.logits()
            if not self._signature.last_row_only:
                logits = logits[rows or [n - 1]]
        if out is not None:
            out[:] = logits
        return logits.astype(np.float32, copy=False)

    def _execute(self, n: int, cancelled: Callable[[], bool] | None) -> None:
        assert self._bound is not None
        if cancelled is None or n < _WATCH_FROM_TOKENS:
            ort_session.run(self._session, self._bound.binding, None)
            return
        options = ort_session.onnxruntime().RunOptions()
        with _Watch(options, cancelled) as watch:
            try:
                ort_session.run(self._session, self._bound.binding, options)
            except BackendError:
                if watch.fired:
                    raise ForwardCancelled(0) from None
                raise

    def _checked(self, batch: Batch) -> np.ndarray:
        self._check_open()
        self.kv.check_no_tree("forward")
        tokens = np.asarray(batch.tokens, np.int64)
        if tokens.size == 0 or tokens.min() < 0 or tokens.max() >= self.spec.vocab:
            raise ValueError(f"token ids must be 0..{self.spec.vocab - 1} and at least one, got {tokens[:8].tolist()}")
        if batch.parents is not None and len(tokens) > self.capabilities.tree_tokens:
            largest = self.capabilities.tree_tokens
            raise PlanError(
                f"a tree of {len(tokens)} tokens does not fit: trees here have at most {largest} tokens "
                "(tree_leaves of the LoadSpec switches them on, its chunk is the largest tree).",
                clash=("tree batch", f"tree_tokens {largest}"),
            )
        return tokens

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this engine is closed")

    def _check_room(self, n: int, last: int) -> None:
        if self.kv.length + n > self.kv.capacity_tokens:
            raise ContextOverflow(prompt_tokens=n, limit=self.kv.capacity_tokens, held_tokens=self.kv.length)
        # Learned positions end with their table; so may the rotary tables inside a foreign graph.
        if (self.spec.rope is None or self._signature.kind != "ours") and last >= self.spec.context:
            raise ContextOverflow(prompt_tokens=n, limit=self.spec.context, held_tokens=self.kv.next_position)


class _Watch:
    """Asks `cancelled` from another thread while a run is under way, and makes the run stop."""

    def __init__(self, options: Any, cancelled: Callable[[], bool]) -> None:
        self.fired = False
        self._options, self._cancelled = options, cancelled
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="wattwise-cancel", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(_WATCH_EVERY_S):
            if self._cancelled():
                self.fired = True
                self._options.terminate = True
                return
