"""Moving rows to other positions: for which models llama.cpp turns their keys rightly, and making it do so at once.

`llama_memory_seq_add` only renumbers cells and remembers by how much; keys are turned at the beginning of the next
`llama_decode`, all cells of the cache in place, by the same RoPE that made them. Left to the next forward call that
would be wrong here twice: until then saved rows have new positions and old keys, and a call that is cancelled in the
middle of it leaves some layers turned, which would be turned again. So a token of the spare sequence is decoded at
once, which nothing can cancel, and removed. Where no cell is free for it llama.cpp says so after the turning.

Costs, of 8 layers with 5 KV heads of 64 and 4096 cells on one thread: 6 ms with f32, 9 with f16, 57 with q8_0 (every
row is dequantised, turned and quantised), and 1 ms for the token; quantised keys need scratch (`scratch_bytes`). Rows
that stay come out bit by bit as they were; keys that move are rounded once more, so their error grows with the square
root of the number of moves (q8_0, root mean square: 0.006 of a standard deviation, 0.019 after eleven moves).

Refused: bf16 keys (llama.cpp's RoPE has no bf16 and ends the process), quantised keys that are not rotated (it follows
a null pointer), sliding-window models (rows outside the window are gone from the second cache), learned positions, and
RoPE with an attention factor (every turn would scale every key of the cache once more).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from wattwise_devices.errors import BackendError, PlanError
from wattwise_runtimes.contracts import LoadSpec
from wattwise_runtimes.engines.llamacpp import log
from wattwise_runtimes.engines.llamacpp.batch import NativeBatch
from wattwise_runtimes.engines.llamacpp.guards import has_two_caches, padded_cells
from wattwise_runtimes.engines.llamacpp.kv_types import ROTATION_SWITCH, kv_type, rotation_size
from wattwise_runtimes.engines.llamacpp.native import NO_SLOT, Native
from wattwise_runtimes.spec import ModelSpec

_COPIES = 2  # of one layer's keys as float32: before and after a product or RoPE
_GRAPH_BYTES = 256 << 10  # the graph of a move, and what planning the forward graph anew leaves: 50 to 200 KB


def refusal(spec: ModelSpec, load: LoadSpec) -> PlanError | None:
    """Why keys of such an engine cannot be moved; None if they can."""
    keys = kv_type(load.kv_type)
    if spec.rope is None:
        return _refused("this model has learned positions, its keys cannot be turned to others", "learned positions")
    if has_two_caches(spec):
        return _refused(
            f"llama.cpp keeps the sliding-window layers of {spec.architecture} in a second cache and overwrites rows "
            "outside the window",
            "sliding-window layers",
        )
    if spec.rope.attention_factor != 1:
        return _refused(
            f"llama.cpp would scale all keys by this model's RoPE attention factor of {spec.rope.attention_factor:g} "
            "once more with every move",
            f"RoPE attention factor {spec.rope.attention_factor:g}",
        )
    if keys.name == "bf16":
        return _refused("llama.cpp cannot turn bf16 keys; load the model with f16", "kv_type bf16")
    if keys.block > 1 and not rotation_size(keys, spec.head_dim):
        why = f"environment variable {ROTATION_SWITCH}" if spec.head_dim % 64 == 0 else f"head size {spec.head_dim}"
        return _refused(
            f"llama.cpp turns {keys.name} keys only where it rotates them, which {why} prevents; load the model with "
            "f16",
            f"kv_type {keys.name} with {why}",
        )
    return None


def _refused(why: str, with_what: str) -> PlanError:
    return PlanError(f"keys cannot be moved here: {why}", clash=("shift", f"{with_what} on the llamacpp engine"))


def scratch_bytes(spec: ModelSpec, load: LoadSpec) -> int:
    """What the compute buffer must have room for while keys are turned; 0 where they never are or it is little."""
    if kv_type(load.kv_type).block == 1 or refusal(spec, load) is not None:
        return 0
    cells, rotation = padded_cells(load.context), rotation_size(kv_type(load.kv_type), spec.head_dim)
    return 4 * (_COPIES * cells * spec.kv_heads * spec.head_dim + cells + rotation**2) + _GRAPH_BYTES


def turn_keys(native: Native, compute: Callable[[Any], int], spare: int) -> None:
    """Make llama.cpp turn the keys of cells that were renumbered. Raises BackendError where it could not.

    compute: decodes a `llama_batch` and gives the status; must not be stopped. spare: an unused sequence, whose token
    the caller removes.
    """
    batch = NativeBatch(native, 1, 1)
    batch.tree(np.zeros(1, np.int64), np.zeros(1, np.int64), [], [[spare]])
    with log.Capture() as said:
        status = compute(batch.struct)
    failed = [line for line in said.lines if "K-shift" in line and "failed" in line]
    if status not in (0, NO_SLOT) or failed:
        raise BackendError(f"llama.cpp could not move keys (status {status}): {'; '.join(failed) or log.last_words()}")
