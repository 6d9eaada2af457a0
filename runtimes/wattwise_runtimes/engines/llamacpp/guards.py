"""Requests that this engine must refuse before native code sees them: they would end the process or be ignored.

Each is a `PlanError` that names the two things that clash and what works instead. Facts of llama.cpp at 0.3.36:
a quantised V cache exists only with flash attention, and then attention weights do not exist, so they clash
(`params.flash_attention`); more sequences than output rows or batch tokens end the process (see `params`); so does a
K shift with bf16 or some quantised K caches, which is refused when rows are to be moved (`shift.refusal`).
"""

from __future__ import annotations

from pathlib import Path

from wattwise_devices.errors import LoadError, PlanError
from wattwise_runtimes.contracts import Artifact, LoadSpec
from wattwise_runtimes.engines.llamacpp.kv_types import KV_TYPES, kv_type
from wattwise_runtimes.formats.gguf import GGUFFile, read_gguf
from wattwise_runtimes.formats.gguf_llama import validate_for_llama
from wattwise_runtimes.spec import ModelSpec

MAX_TREE_LEAVES = 255  # llama.cpp has 256 sequences, one is the text itself
MAX_CONTEXT = 2**31 - 256  # its positions are 32-bit
MAX_THREADS = 512  # GGML_MAX_N_THREADS
CELL_PADDING = 256  # llama.cpp rounds the context up to this many cells
NO_WINDOW = ("llama", "mistral", "qwen2", "qwen3", "phi3")  # architectures that llama.cpp runs without one


def check(artifact: Artifact, load: LoadSpec) -> None:
    """Raise for a request that cannot be honoured."""
    if artifact.format != "gguf":
        raise LoadError(f"the llamacpp engine reads GGUF files only, not {artifact.path}; use the onnx engine for it")
    _check_counts(load)
    _check_kv_type(artifact.spec, load)
    _check_positions(artifact.spec, load)
    _check_scores(artifact.spec, load)
    if load.tree_leaves and has_two_caches(artifact.spec):
        raise PlanError(
            f"token trees need one KV cache, but llama.cpp keeps the sliding-window layers of "
            f"{artifact.spec.architecture} in a second one. Draft chains instead of trees.",
            clash=("tree_leaves", "sliding-window layers on the llamacpp engine"),
        )


def open_checked(path: str | Path) -> GGUFFile:
    """The file, if it is sound and nothing in it would make llama.cpp end the process; else a typed error."""
    gguf = read_gguf(path)
    validate_for_llama(gguf)
    return gguf


def padded_cells(context: int) -> int:
    """Cells that llama.cpp allocates for a context of so many tokens."""
    return -(-context // CELL_PADDING) * CELL_PADDING


def has_two_caches(spec: ModelSpec) -> bool:
    """Whether llama.cpp keeps the sliding-window layers of this model in a cache of their own."""
    return spec.sliding_window is not None and spec.architecture not in NO_WINDOW


def _check_counts(load: LoadSpec) -> None:
    limits = {"context": MAX_CONTEXT, "chunk": MAX_CONTEXT, "threads": MAX_THREADS, "threads_batch": MAX_THREADS}
    for name, most in limits.items():
        value = getattr(load, name)
        if value is not None and not 1 <= value <= most:
            raise PlanError(f"{name} must be 1 to {most}, got {value}", clash=(name, "the llamacpp engine"))
    if not 0 <= load.tree_leaves <= MAX_TREE_LEAVES:
        raise PlanError(
            f"tree_leaves is {load.tree_leaves}; llama.cpp has sequences for at most {MAX_TREE_LEAVES} leaves",
            clash=("tree_leaves", "the llamacpp engine"),
        )


def _check_kv_type(spec: ModelSpec, load: LoadSpec) -> None:
    if load.kv_type not in KV_TYPES:
        raise PlanError(
            f"the llamacpp engine has no KV type {load.kv_type!r}; it has: {', '.join(KV_TYPES)}",
            clash=("kv_type", "the llamacpp engine"),
        )
    block = kv_type(load.kv_type).block
    if spec.head_dim % block:
        raise PlanError(
            f"KV type {load.kv_type} stores blocks of {block} values, but a head of this model has {spec.head_dim}. "
            "Use f16.",
            clash=(f"kv_type {load.kv_type}", f"head size {spec.head_dim}"),
        )


def _check_scores(spec: ModelSpec, load: LoadSpec) -> None:
    if not load.attention_scores:
        return
    if kv_type(load.kv_type).block > 1:
        raise PlanError(
            f"llama.cpp keeps {load.kv_type} values only with flash attention, which never has the attention scores in "
            "memory. Ask for kv_type f16, or use a policy that reads keys instead.",
            clash=("attention_scores", f"kv_type {load.kv_type} on the llamacpp engine"),
        )
    if has_two_caches(spec):
        raise PlanError(
            f"llama.cpp keeps the sliding-window layers of {spec.architecture} in a second KV cache and overwrites "
            "rows outside the window, so there are no scores over the rows held. Use the onnx engine.",
            clash=("attention_scores", "sliding-window layers on the llamacpp engine"),
        )


def _check_positions(spec: ModelSpec, load: LoadSpec) -> None:
    if spec.rope is None and load.context > spec.context:
        raise PlanError(
            f"this model has learned positions for {spec.context} tokens, a context of {load.context} was asked for",
            clash=("context", "learned positions"),
        )
    window = spec.sliding_window
    if window is not None and spec.architecture in NO_WINDOW and load.context > window:
        raise PlanError(
            f"llama.cpp runs {spec.architecture} without its sliding window of {window} tokens, so results are only "
            f"right up to there. Ask for a context of at most {window}, or use the onnx engine.",
            clash=(f"context {load.context}", f"sliding window {window} on the llamacpp engine"),
        )
    rope = spec.rope
    if rope is not None and rope.scaling == "longrope" and load.context <= rope.original_context:
        cells, original = padded_cells(load.context), rope.original_context
        if cells > original:  # llama.cpp would judge by the rounded context and take the long factors
            raise PlanError(
                f"llama.cpp rounds a context of {load.context} up to {cells}, but this model's short RoPE factors "
                f"end at {original} tokens. Ask for a context of more than {original} tokens.",
                clash=(f"context {load.context}", f"LongRoPE's original context {original}"),
            )
