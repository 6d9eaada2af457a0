"""What an engine is: one forward call, one KV store, and plain answers about bytes and places.

The contracts that eviction, drafting, streaming and sessions stand on. Every engine under `engines/` passes
`tests/runtimes/test_engine_conformance.py`; read that test for the exact behaviour, this file for the reasons.

Words used throughout
- position: a token's place in the text as the model's position encoding sees it, from 0.
- row: one entry of the KV cache, the keys and values of one token over all layers. Rows are held in order of
  position. After `drop` there are holes: fewer rows than positions. Nothing is ever renumbered silently.
- head rows: after `drop_by_head` every layer and KV head holds the same number of rows, but of other tokens. What was
  appended since then is held by all of them.
- batch: the tokens of one forward call. A chain follows the cache; a tree branches off its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from wattwise_devices.errors import PlanError
from wattwise_runtimes.spec import ModelSpec


def refuse_thread_change(engine: str) -> PlanError:
    """The error of `Engine.set_threads` where threads are fixed when the model is loaded."""
    return PlanError(
        f"the {engine} engine cannot change its threads after loading; load the model with the threads that you want",
        clash=("a change of threads", f"engine {engine}"),
    )


class ForwardCancelled(Exception):
    """`forward` stopped because `cancelled()` said so. The first `rows_done` tokens are in the KV store."""

    def __init__(self, rows_done: int) -> None:
        self.rows_done = rows_done
        super().__init__(f"cancelled after {rows_done} tokens")


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one forward call.

    tokens: int sequence, shape [n], n >= 1. May be longer than one chunk; the engine splits chains.
    parents: None for a chain. For a tree, shape [n]: the index in this batch of each token's parent, -1 where
      the parent is the last token in the KV store; parents come before their children. A tree goes through in
      one piece, so n is at most `Capabilities.tree_tokens`. Position of a node = next position + its depth.
    logits: which rows' logits are wanted: "last", "all", "none", or indices in increasing order.
    """

    tokens: Sequence[int] | np.ndarray
    parents: Sequence[int] | None = None
    logits: Literal["last", "all", "none"] | Sequence[int] = "last"

    def logit_rows(self) -> list[int]:
        """The wanted rows as increasing indices."""
        n = len(self.tokens)
        if self.logits == "last":
            return [n - 1]
        if self.logits == "all":
            return list(range(n))
        if self.logits == "none":
            return []
        return [int(i) for i in self.logits]

    def depths(self) -> list[int]:
        """Depth of every node: 0, 1, 2, ... for a chain."""
        if self.parents is None:
            return list(range(len(self.tokens)))
        depths: list[int] = []
        for i, parent in enumerate(self.parents):
            if not -1 <= parent < i:
                raise ValueError(f"tree node {i} has parent {parent}; parents must come before their children")
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What this engine, loaded this way, can do. A caller checks here and refuses, or falls back visibly.

    tree_tokens: largest tree batch; 0: no trees. drop: "token" (whole rows), "head" (own rows per layer and
    KV head as well), "none". keys, attention: `view()` can give them. export: `export`/`restore` work.
    truncate: the KV store can rewind (recurrent models cannot). shift: `KVStore.shift` can move keys to other
    positions. cancel_within_ms: how soon a running chunk notices a cancellation, None if only between chunks.
    threads_adjustable: `set_threads` works after loading.
    """

    tree_tokens: int = 0
    drop: Literal["none", "token", "head"] = "none"
    keys: bool = False
    attention: bool = False
    export: bool = False
    truncate: bool = True
    shift: bool = False
    cancel_within_ms: float | None = None
    threads_adjustable: bool = False


@dataclass(frozen=True, slots=True)
class Ledger:
    """Bytes by what holds them. `plan` predicts one, `Engine.nbytes` answers with one; they use the same keys.

    weights: parameters as the engine keeps them (repacked copies included). kv: the KV cache at capacity.
    compute: scratch buffers, logits, I/O buffers. runtime: the rest; from an engine its own tables for this model,
    in a plan also the interpreter and the libraries, which only the planner can measure.
    """

    weights: int = 0
    kv: int = 0
    compute: int = 0
    runtime: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts, in bytes."""
        return self.weights + self.kv + self.compute + self.runtime

    def to_json(self) -> dict[str, int]:
        """Field names as in plans and reports, with the unit in the name."""
        return {
            "weights_bytes": self.weights,
            "kv_bytes": self.kv,
            "compute_bytes": self.compute,
            "runtime_bytes": self.runtime,
            "total_bytes": self.total,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """How to load a model: the part of a plan that an engine needs to know. All sizes in tokens or counts.

    context: rows the KV store can hold. chunk: tokens per internal chunk of a long forward.
    kv_type: element type of keys and values: "f32", "f16", or an engine's own quantised names ("q8_0", ...);
    an engine raises PlanError for a type it lacks. threads: for decode (one row); threads_batch: for more rows.
    tree_leaves: leaves that a tree batch may have; 0 loads without tree support (it costs memory or speed).
    attention_scores: make `KVView.attention` available (it may switch faster kernels off).
    """

    context: int
    chunk: int = 512
    kv_type: str = "f16"
    threads: int = 1
    threads_batch: int | None = None
    tree_leaves: int = 0
    attention_scores: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model on disk, already validated by our own readers (`wattwise_runtimes.artifact.open_artifact`).

    path: a .gguf file or an ONNX folder. format: which. spec: what it holds. weights_bytes: of all tensors.
    quant: the weight type in the format's words ("q4_0", "int4", ...); mixed files name the commonest.
    """

    path: Path
    format: Literal["gguf", "onnx"]
    spec: ModelSpec
    weights_bytes: int
    quant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVView:
    """What an eviction policy may look at: plain data, read-only, nothing that reaches back into the engine.

    positions: int64 [rows]; with head rows, those of layer 0 and head 0. keys(layer): float32 [kv_heads, rows,
    head_dim], after RoPE, or None where the engine cannot read them. attention(layer): float32 [heads, queries, rows],
    after the softmax, of the last chunk of the last forward call (`LoadSpec.chunk` tokens at most), over the rows held
    now; None where it is not available or rows have changed since. head_positions(layer): int64 [kv_heads, rows], None
    while every head holds the same tokens.
    """

    positions: np.ndarray
    layers: int
    keys: Callable[[int], np.ndarray] | None = None
    attention: Callable[[int], np.ndarray] | None = None
    head_positions: Callable[[int], np.ndarray] | None = None


class KVStore(Protocol):
    """The keys and values of one text. The only object that mutates them; all others decide and ask."""

    @property
    def length(self) -> int:
        """Rows held."""
        ...

    @property
    def positions(self) -> np.ndarray:
        """Positions of the rows held, int64 [length], increasing (after a tree: until `accept`, by node).

        With head rows: those of layer 0 and head 0; `view().head_positions` has the others.
        """
        ...

    @property
    def next_position(self) -> int:
        """Position that the next token gets: last position + 1, or 0 when empty."""
        ...

    @property
    def capacity_tokens(self) -> int:
        """Rows that fit."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes allocated for rows, used or not."""
        ...

    def clear(self) -> None:
        """Forget everything; the next token has position 0."""
        ...

    def truncate(self, position: int) -> None:
        """Rewind: forget every row at `position` or later. Earlier holes stay holes.

        With head rows, `position` - 1 must be the same row, by number, of all heads (or nothing be left): ValueError
        otherwise.
        """
        ...

    def drop(self, positions: Sequence[int]) -> None:
        """Evict the rows at these positions (token level); later rows keep theirs. Their bytes can be reused.

        Raises ValueError for a position not held or for the newest one (decoding continues from it), and
        PlanError where `Capabilities.drop` is "none".
        """
        ...

    def drop_by_head(self, keep: np.ndarray) -> None:
        """Keep other rows in every layer and KV head: positions int64 [layers, kv_heads, kept], increasing in the last
        dimension. Later rows keep their positions; `length` is `kept` from now on.

        The newest row must be kept by all. Raises ValueError for positions that are not held, and PlanError unless
        `Capabilities.drop` is "head".
        """
        ...

    def shift(self, start: int, stop: int, by: int) -> None:
        """Give the rows with start <= position < stop the position + by, and turn their keys to it (RoPE is linear in
        the position: PIE, LM-Infinite). Values stay: they still speak of the old neighbourhood.

        Raises ValueError where the moved rows would not stay in order or go below 0, and with head rows, and PlanError
        where `Capabilities.shift` is False.
        """
        ...

    def accept(self, path: Sequence[int]) -> None:
        """After a tree batch: keep the nodes on `path` (indices in that batch, root first), forget the others.

        An empty path forgets the whole tree. Until then nothing else may be called but `accept` and `clear`.
        """
        ...

    def view(self) -> KVView:
        """Read access for policies, valid until the next mutation."""
        ...

    def export(self, start: int = 0, stop: int | None = None) -> bytes:
        """Rows with start <= position < stop as bytes that `restore` of an equal engine reads back.

        With head rows, only all of them at once (start 0, stop None); `restore` then needs an empty store.
        """
        ...

    def restore(self, data: bytes) -> None:
        """Append exported rows; their positions must start at or after `next_position`.

        Raises CorruptArtifact for bytes that do not describe rows of this engine and model.
        """
        ...


@runtime_checkable
class Engine(Protocol):
    """One loaded model. Not thread-safe: one caller at a time; `cancelled` may be answered by another thread."""

    spec: ModelSpec
    capabilities: Capabilities

    @property
    def kv(self) -> KVStore:
        """The rows of the text so far."""
        ...

    def forward(self, batch: Batch, cancelled: Callable[[], bool] | None = None) -> np.ndarray:
        """Append the batch to the KV store; logits of the wanted rows, float32 [rows, vocab].

        The one call for prefill, decode, verification and trees. The array is the engine's own and valid until
        the next call. Raises ContextOverflow before anything is computed when the rows would not fit,
        ForwardCancelled when `cancelled()` turns true between chunks (or within one, see Capabilities),
        ValueError for ids outside the vocabulary. A chain of n tokens gives the same logits, within rounding,
        however it is split into calls.
        """
        ...

    def set_threads(self, threads: int, threads_batch: int | None = None) -> None:
        """Thread counts from the next forward on: for one row, and for more rows (None: the same).

        Raises ValueError for counts below 1, and PlanError where `Capabilities.threads_adjustable` is False.
        """
        ...

    def nbytes(self) -> Ledger:
        """What is really held now."""
        ...

    def where(self) -> Mapping[str, Any]:
        """What ran on which device, from the engine's own evidence (never from what was asked for)."""
        ...

    def close(self) -> None:
        """Give everything back. Idempotent; any later call raises BackendError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """A probed backend: its name, version and the devices it can use on this machine."""

    name: str
    version: str
    formats: tuple[str, ...]
    kv_types: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu",)
    notes: tuple[str, ...] = field(default=())


class Backend(Protocol):
    """One engine family: a module in `engines/` whose `BACKEND` is an instance. Found by file name."""

    name: str

    def probe(self) -> Capability | None:
        """What it can do here; None if it is not installed. Never raises, loads no model."""
        ...

    def warm_up(self) -> int:
        """Import and initialise what `load` needs before it opens a model; the planner measures that in a child.

        Answers with bytes that a run will make resident later although they need no model (library code not read yet).
        """
        ...

    def estimate(self, artifact: Artifact, spec: LoadSpec) -> Ledger:
        """Peak bytes of `load` and a full context afterwards, without loading.

        `runtime` is what comes on top of a warmed-up process (the engine's tables); the planner measures the rest.
        """
        ...

    def capabilities(self, artifact: Artifact, spec: LoadSpec) -> Capabilities:
        """What the engine of such a `load` would be able to do, without loading. Raises as `estimate` does."""
        ...

    def load(
        self, artifact: Artifact, spec: LoadSpec, on_progress: Callable[[float], bool | None] | None = None
    ) -> Engine:
        """Open the model. on_progress gets 0..1 and may return False to stop (raises LoadError)."""
        ...
