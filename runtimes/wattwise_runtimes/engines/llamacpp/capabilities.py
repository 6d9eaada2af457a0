"""What the engine can do with a model, loaded this way; known before anything is loaded."""

from __future__ import annotations

from wattwise_runtimes.contracts import Capabilities, LoadSpec
from wattwise_runtimes.engines.llamacpp import params, shift
from wattwise_runtimes.engines.llamacpp.guards import has_two_caches
from wattwise_runtimes.spec import ModelSpec

_CANCEL_MS = 100.0  # one poll and the slowest node of a chunk: 10 to 20 on an idle machine, 100 on a crowded one


def capabilities(spec: ModelSpec, load: LoadSpec) -> Capabilities:
    """The rules of `guards` and `shift` as answers. The request itself must have passed `guards.check`."""
    one_cache = not has_two_caches(spec)
    return Capabilities(
        tree_tokens=params.tree_tokens(load),
        drop="token" if one_cache else "none",
        keys=one_cache,
        attention=load.attention_scores,
        export=True,
        truncate=True,
        shift=shift.refusal(spec, load) is None,
        cancel_within_ms=_CANCEL_MS,
        threads_adjustable=True,
    )
