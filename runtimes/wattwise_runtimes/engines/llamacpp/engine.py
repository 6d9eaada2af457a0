"""The llama.cpp engine: one `forward` for prefill, decode, verification and trees, on the low-level API.

A call is cut into chunks of at most `LoadSpec.chunk` tokens and of the rows of logits that the context has room
for; one chunk is one native call and one micro-batch, so a chunk that is stopped leaves nothing behind. Logits are
handed out as a view on llama.cpp's own buffer where one chunk gave all of them. Where attention scores are wanted, a
tap listens to the native calls of the last chunk (`tap.py`), and everything is computed in the watched thread.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wattwise_devices.errors import BackendError, ContextOverflow, PlanError
from wattwise_runtimes.contracts import Batch, ForwardCancelled, Ledger, LoadSpec
from wattwise_runtimes.engines.llamacpp import log, params
from wattwise_runtimes.engines.llamacpp.abort import Watched
from wattwise_runtimes.engines.llamacpp.batch import NativeBatch
from wattwise_runtimes.engines.llamacpp.capabilities import capabilities
from wattwise_runtimes.engines.llamacpp.evidence import Evidence
from wattwise_runtimes.engines.llamacpp.guards import MAX_CONTEXT, NO_WINDOW
from wattwise_runtimes.engines.llamacpp.kv import LlamaKV, OpenTree
from wattwise_runtimes.engines.llamacpp.native import ABORTED, NO_SLOT, Native
from wattwise_runtimes.engines.llamacpp.tap import Tap
from wattwise_runtimes.spec import ModelSpec

_WATCH_SECONDS = 0.03  # computations expected to take longer are watched for cancellation


class LlamaEngine:
    """Engine over one llama.cpp model and context. Made by `backend.LlamaBackend.load`."""

    def __init__(
        self, native: Native, model: int, context: int, spec: ModelSpec, load: LoadSpec, *, kv: LlamaKV,
        watched: Watched, tap: Tap | None, evidence: Evidence,
    ) -> None:  # fmt: skip
        self.spec, self.kv = spec, kv
        self._native, self._model, self._context, self._load = native, model, context, load
        self._watched, self._tap, self._evidence = watched, tap, evidence
        self._chunk = params.chunk_tokens(load)
        self._output_rows = params.output_rows(spec, load)
        self._batch = NativeBatch(native, params.batch_tokens(load), max(1, load.tree_leaves))
        self._views: dict[tuple[int, int], np.ndarray] = {}
        self._nothing = np.zeros((0, spec.vocab), np.float32)
        self._seconds_per_row = math.inf
        self._position_limit = _position_limit(spec)
        self._decode, self._logits, self._struct = native.decode, native.logits, self._batch.struct
        self.capabilities = capabilities(spec, load)

    def forward(self, batch: Batch, cancelled: Callable[[], bool] | None = None) -> np.ndarray:
        self.kv.check_no_tree("forward")
        tokens = batch.tokens
        if len(tokens) == 1 and batch.parents is None and batch.logits == "last":
            return self._one(int(tokens[0]), cancelled)
        ids = self._checked(tokens)
        wanted = batch.logit_rows()
        if wanted and not 0 <= wanted[0] <= wanted[-1] < len(ids):
            raise ValueError(f"logits are asked for rows {wanted[0]}..{wanted[-1]} of a batch of {len(ids)} tokens")
        if batch.parents is not None:
            return self._tree(batch, ids, wanted, cancelled)
        return self._chain(ids, wanted, cancelled)

    def nbytes(self) -> Ledger:
        self._check_open()
        return self._evidence.ledger(kv_bytes=self.kv.nbytes)

    def where(self) -> Mapping[str, Any]:
        self._check_open()
        return self._evidence.where(
            threads=self._native.threads(self._context), threads_batch=self._native.threads_batch(self._context)
        )

    def set_threads(self, threads: int, threads_batch: int | None = None) -> None:
        """Change the thread counts from the next call on: for one row, and for more rows."""
        self._check_open()
        if threads < 1 or (threads_batch is not None and threads_batch < 1):
            raise ValueError(f"thread counts must be at least 1, got {threads} and {threads_batch}")
        self._native.set_threads(self._context, threads, threads_batch or threads)

    def close(self) -> None:
        if not self._context:
            return
        self.kv.close()
        self._watched.close()
        self._views.clear()
        context, model, self._context, self._model = self._context, self._model, 0, 0
        self._native.context_free(context)
        self._native.model_free(model)

    def __del__(self) -> None:
        if getattr(self, "_context", 0):
            self.close()

    def _one(self, token: int, cancelled: Callable[[], bool] | None) -> np.ndarray:
        """The decode path: one token, its logits."""
        kv = self.kv
        if not 0 <= token < self.spec.vocab:
            self._checked([token])
        position = kv.next_position
        if kv.length >= kv.capacity_tokens or position >= self._position_limit:
            self._check_room(1)
        if cancelled is not None and cancelled():
            raise ForwardCancelled(0)
        self._batch.one(token, position, True)
        self._listen_from_here()
        self._compute(1, cancelled, 0, is_shown=True)
        return self._rows(1)

    def _chain(self, ids: np.ndarray, wanted: list[int], cancelled: Callable[[], bool] | None) -> np.ndarray:
        self._check_room(len(ids))
        collected: np.ndarray | None = None
        got = self._nothing
        filled = 0
        last_chunk = (len(ids) - 1) // self._chunk * self._chunk
        for start, stop, picked in self._chunks(len(ids), wanted):
            if cancelled is not None and cancelled():
                raise ForwardCancelled(start)
            self._batch.chain(ids[start:stop], self.kv.next_position, picked)
            if start == last_chunk:
                self._listen_from_here()
            self._compute(stop - start, cancelled, start, is_shown=start >= last_chunk)
            if not picked:
                continue
            got = self._rows(len(picked))
            if len(picked) < len(wanted):  # rows from several chunks: the native buffer holds the last chunk's only
                if collected is None:
                    collected = np.empty((len(wanted), self.spec.vocab), np.float32)
                collected[filled : filled + len(picked)] = got
                filled += len(picked)
        return got if collected is None else collected

    def _tree(
        self, batch: Batch, ids: np.ndarray, wanted: list[int], cancelled: Callable[[], bool] | None
    ) -> np.ndarray:
        parents = [int(p) for p in batch.parents or ()]
        if len(parents) != len(ids):
            raise ValueError(f"a tree batch has {len(ids)} tokens but {len(parents)} parents")
        depths = batch.depths()
        self._check_tree(len(ids))
        below = leaves_below(parents)
        leaves = max(max(b) for b in below)
        if leaves > self._load.tree_leaves:
            raise PlanError(
                f"this tree has {leaves} leaves, the engine was loaded for {self._load.tree_leaves}",
                clash=("a token tree", f"tree_leaves {self._load.tree_leaves}"),
            )
        self._check_room(len(ids))
        if cancelled is not None and cancelled():
            raise ForwardCancelled(0)
        positions = self.kv.next_position + np.asarray(depths, np.int64)
        self.kv.share_text(leaves)
        self._batch.tree(ids, positions, wanted, below)
        self._compute(len(ids), cancelled, 0, tree=OpenTree(positions, parents, [b[0] for b in below], leaves))
        return self._rows(len(wanted)) if wanted else self._nothing

    def _listen_from_here(self) -> None:
        """The chunk whose attention views will show begins."""
        if self._tap is not None:
            self._tap.forget()
            self.kv.show(None)

    def _compute(
        self, rows: int, cancelled: Callable[[], bool] | None, rows_done: int, *, is_shown: bool = False,
        tree: OpenTree | None = None,
    ) -> None:  # fmt: skip
        """Run the native batch and record its rows; on anything but success the KV store is as it was before.

        is_shown: it belongs to the chunk whose attention can be asked for.
        """
        kv, tap = self.kv, self._tap
        try:
            if tap is not None:
                tap.listen(rows if is_shown else 0)
            started = time.perf_counter()
            is_long = cancelled is not None and rows * self._seconds_per_row > _WATCH_SECONDS
            if is_long or tap is not None:
                status = self._watched.run(lambda: self._decode(self._context, self._struct), cancelled)
            else:
                status = self._decode(self._context, self._struct)
            if status == 0:
                self._seconds_per_row = (time.perf_counter() - started) / rows
                scores = tap.heard() if tap is not None and is_shown else None
                if tree is None:
                    kv.appended(kv.next_position, rows)
                else:
                    kv.opened(tree)
                if scores is not None:
                    kv.show(scores)
                return
        except BaseException:  # Ctrl-C, or an error in `cancelled`: native code may have added rows
            kv.forget_unrecorded(tree)
            raise
        kv.forget_unrecorded(tree)
        self._raise_for(status, rows, rows_done)

    def _raise_for(self, status: int, rows: int, rows_done: int) -> None:
        if status == ABORTED:
            raise ForwardCancelled(rows_done)
        if status == NO_SLOT:
            raise ContextOverflow(prompt_tokens=rows, limit=self.kv.capacity_tokens, held_tokens=self.kv.length)
        raise BackendError(f"llama.cpp failed to compute {rows} tokens (status {status}): {log.last_words()}")

    def _rows(self, count: int) -> np.ndarray:
        """The last chunk's logits, float32 [count, vocab], a view on llama.cpp's output buffer."""
        address = self._logits(self._context)
        view = self._views.get((address, count))
        if view is None:
            if not address:
                raise BackendError(f"llama.cpp gave no logits: {log.last_words()}")
            if len(self._views) > 64:
                self._views.clear()
            floats = (ctypes.c_float * (count * self.spec.vocab)).from_address(address)
            view = np.ctypeslib.as_array(floats).reshape(count, self.spec.vocab)
            self._views[address, count] = view
        return view

    def _chunks(self, n: int, wanted: Sequence[int]) -> Iterator[tuple[int, int, list[int]]]:
        """(start, stop, wanted rows within) of each native call; a chunk with many wanted rows takes several."""
        start = next_wanted = 0
        while start < n:
            stop = min((start // self._chunk + 1) * self._chunk, n)
            picked: list[int] = []
            while next_wanted < len(wanted) and wanted[next_wanted] < stop:
                if len(picked) == self._output_rows:
                    stop = start + picked[-1] + 1
                    break
                picked.append(wanted[next_wanted] - start)
                next_wanted += 1
            yield start, stop, picked
            start = stop

    def _checked(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        ids = np.asarray(tokens, np.int64)
        if ids.size == 0 or ids.ndim != 1 or ids.min() < 0 or ids.max() >= self.spec.vocab:
            raise ValueError(f"token ids must be 0..{self.spec.vocab - 1} and at least one, got {ids[:8].tolist()}")
        return ids

    def _check_room(self, n: int) -> None:
        if self.kv.length + n > self.kv.capacity_tokens:
            raise ContextOverflow(prompt_tokens=n, limit=self.kv.capacity_tokens, held_tokens=self.kv.length)
        if self.kv.next_position + n > self._position_limit:
            limit = int(self._position_limit)
            raise ContextOverflow(prompt_tokens=n, limit=limit, held_tokens=self.kv.next_position)

    def _check_tree(self, n: int) -> None:
        most = self.capabilities.tree_tokens
        if not most:
            raise PlanError(
                "this engine was loaded without tree support; load it with tree_leaves > 0",
                clash=("a token tree", "tree_leaves 0"),
            )
        if n > most:
            raise PlanError(f"a tree of {n} tokens; this engine takes at most {most}", clash=("tree", "tree_tokens"))

    def _check_open(self) -> None:
        if not self._context:
            raise BackendError("this engine is closed")


def leaves_below(parents: Sequence[int]) -> list[list[int]]:
    """Per node the leaves under it (itself, if it is one), as sequence numbers from 1, in order of the leaves."""
    inner = set(parents)
    below: list[list[int]] = [[] for _ in parents]
    sequence = 0
    for node in range(len(parents)):
        if node in inner:
            continue
        sequence += 1
        while node >= 0:
            below[node].append(sequence)
            node = parents[node]
    return below


def _position_limit(spec: ModelSpec) -> float:
    """Positions from here on would be computed wrongly: no learned position, or a window llama.cpp does not have."""
    if spec.rope is None:
        return spec.context
    if spec.sliding_window is not None and spec.architecture in NO_WINDOW:
        return spec.sliding_window
    return MAX_CONTEXT
