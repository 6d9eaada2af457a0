"""What a folder can do, loaded in a certain way: refusals by name before loading, and the engine's capabilities."""

from __future__ import annotations

from wattwise_devices.errors import PlanError, UnsupportedArchitecture
from wattwise_runtimes.contracts import Capabilities, LoadSpec
from wattwise_runtimes.engines.onnx.codec import BITS, plain_kv_type
from wattwise_runtimes.engines.onnx.engine import CANCEL_WITHIN_MS
from wattwise_runtimes.engines.onnx.growing import GROWING_CAPABILITIES
from wattwise_runtimes.engines.onnx.kv import RowLimits
from wattwise_runtimes.engines.onnx.signature import Signature
from wattwise_runtimes.spec import ModelSpec

KV_TYPES = ("f32", *BITS)


def check_load(signature: Signature, load: LoadSpec) -> None:
    """Raise PlanError where this kind of graph cannot be loaded so, UnsupportedArchitecture for sizes below 1."""
    held = plain_kv_type(signature.kv_dtype)
    if load.kv_type not in (held, *BITS):
        raise PlanError(
            f"this ONNX folder keeps its KV cache in {held}; kv type {load.kv_type!r} is not available",
            clash=(f"kv type {load.kv_type}", f"graph with {held} cache"),
        )
    if signature.kind != "ours":
        _check_foreign(load)
    if load.context < 1 or load.chunk < 1:
        raise UnsupportedArchitecture(f"context {load.context} and chunk {load.chunk} must be at least 1")


def _check_foreign(load: LoadSpec) -> None:
    """What needs a graph that we know to the node."""
    wishes = {
        f"kv type {load.kv_type}": load.kv_type in BITS,
        "attention_scores": load.attention_scores,
        "tree_leaves": load.tree_leaves > 0,
    }
    asked = [name for name, is_asked in wishes.items() if is_asked]
    if asked:
        raise PlanError(
            f"{asked[0]} is not available here: this folder was not written by wattwise, so its graph cannot be "
            "changed. Convert the model again, or load it without.",
            clash=(asked[0], "foreign ONNX folder"),
        )


def row_limits(signature: Signature, spec: ModelSpec, load: LoadSpec) -> RowLimits:
    """What cannot be done to the rows of the cache, and why."""
    no_drop = None
    if signature.kind != "ours":
        no_drop = "this graph takes a row's number for its position"
    elif spec.sliding_window is not None and load.tree_leaves == 0:
        no_drop = "sliding-window layers count rows, not positions, unless the model is loaded with tree_leaves"
    windowed = "the sliding window's mask is the same for all heads" if spec.sliding_window is not None else None
    learned = "this model has no rotary positions" if spec.rope is None else None
    return RowLimits(no_drop=no_drop, no_drop_by_head=no_drop or windowed, no_shift=no_drop or learned)


def capabilities(signature: Signature, spec: ModelSpec, load: LoadSpec) -> Capabilities:
    """Of the engine that such a load makes."""
    if signature.kind == "growing":
        return GROWING_CAPABILITIES
    limits = row_limits(signature, spec, load)
    return Capabilities(
        tree_tokens=min(load.chunk, load.context) if load.tree_leaves > 0 else 0,
        drop="none" if limits.no_drop else "token" if limits.no_drop_by_head else "head",
        keys=True,
        attention=load.attention_scores,
        export=True,
        shift=limits.no_shift is None,
        cancel_within_ms=CANCEL_WITHIN_MS,
    )
