"""Bytes before anything is loaded: llama.cpp's own dry run, plus the few things it does not say.

From the dry run (`dry_run.py`) come the place of every weight (a tied head that is repacked exists twice), the
compute buffer, and, as growth of resident memory, the vocabulary, graph and cell tables. By formula: the KV cache
(exact), the output rows, ggml's work buffer, attention scores, what the compute buffer grows to when quantised keys are
moved, and llama.cpp's sets of cells in use. On top of a process with llama.cpp in it, the sum is the peak of a run that
fills its whole context and touches every buffer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from pathlib import Path

from wattwise_runtimes.contracts import Artifact, Ledger, LoadSpec
from wattwise_runtimes.engines.llamacpp import guards, params, shift
from wattwise_runtimes.engines.llamacpp.dry_run import dry_context, dry_model
from wattwise_runtimes.engines.llamacpp.kv import kv_layout
from wattwise_runtimes.engines.llamacpp.tap import tap_bytes, view_bytes
from wattwise_runtimes.formats.gguf import GGUFTensor
from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME
from wattwise_runtimes.spec import ModelSpec

_FLASH_TILE = 64  # query and key rows of one tile of ggml's flash attention
_K_BLOCK, _K_TILE_BYTES = 256, 512 << 10  # k- and i-quants: scratch of one thread of their tiled product
_CACHE_LINE = 64
_CELL_BYTES = 48  # one node of a std::set of small things, as malloc rounds it


def estimate(artifact: Artifact, load: LoadSpec) -> Ledger:
    """The ledger that loading would lead to; see the module's text."""
    guards.check(artifact, load)
    stat = artifact.path.stat()
    path, stamp = str(artifact.path), (stat.st_mtime_ns, stat.st_size)
    tensors = _checked_tensors(path, stamp)
    model = dry_model(path, stamp)
    compute, tables = dry_context(path, stamp, artifact.spec, load)
    return Ledger(
        weights=model.weights_bytes({t.name: t.nbytes for t in tensors}),
        kv=kv_bytes(artifact.spec, load),
        compute=compute_bytes(tensors, artifact.spec, load, compute),
        runtime=model.tables_bytes + tables + cell_sets_bytes(load),
    )


def kv_bytes(spec: ModelSpec, load: LoadSpec) -> int:
    """Exact size of the KV cache: every layer has the whole context, sliding ones too."""
    layout = kv_layout(spec, load, two_caches=False)
    return guards.padded_cells(load.context) * layout.token_bytes


def compute_bytes(tensors: Iterable[GGUFTensor], spec: ModelSpec, load: LoadSpec, planned: int) -> int:
    """The compute buffer (planned: by llama.cpp) at its largest, output rows, ggml's work buffer, and scores."""
    output = 4 * spec.vocab * params.output_rows(spec, load)
    buffer = max(planned, shift.scratch_bytes(spec, load))
    return buffer + output + work_bytes(tensors, spec, load) + tap_bytes(spec, load) + view_bytes(spec, load)


def cell_sets_bytes(load: LoadSpec) -> int:
    """Sets of the cells in use, in all and by sequence, when the context is full; a tree's leaves share the text."""
    return load.context * _CELL_BYTES * (2 + load.tree_leaves)


def work_bytes(tensors: Iterable[GGUFTensor], spec: ModelSpec, load: LoadSpec) -> int:
    """ggml's work buffer: the widest activation of a chunk in the type that its weight is multiplied in.

    The same arithmetic as ggml's graph planner, for matrix products and for tiled flash attention; without that, keys
    and values are matrices like weights, multiplied with queries and with the scores of all heads.
    """
    threads = max(load.threads, load.threads_batch or load.threads)
    widest = 0.0
    for tensor in tensors:
        if len(tensor.shape) != 2:
            continue
        head = tensor.name in ("token_embd.weight", "output.weight")
        rows = params.output_rows(spec, load) if head else params.batch_tokens(load)
        tiles = threads * _K_TILE_BYTES if TYPE_BY_NAME[tensor.type].block == _K_BLOCK else 0
        widest = max(widest, rows * tensor.shape[1] * _product_bytes(tensor.type) + tiles)
    if not params.flash_attention(load):
        widths = spec.heads * max(spec.head_dim, guards.padded_cells(load.context))
        widest = max(widest, params.batch_tokens(load) * widths * _product_bytes(load.kv_type))
    d, tile = spec.head_dim, _FLASH_TILE
    prefill = 4 * threads * (2 * tile * d + 2 * tile * tile + 2 * tile * d)
    decode = 4 * (spec.heads * threads * (2 + d) + threads * 3 * d)
    return math.ceil(max(widest, prefill, decode)) + _CACHE_LINE * threads


def _product_bytes(weight_type: str) -> float:
    """Bytes per activation when multiplied with weights of this type: ggml's own choice of partner types."""
    if weight_type == "f32":
        return 0.0
    if weight_type in ("f16", "bf16"):
        return 2.0
    if weight_type in ("q4_1", "q5_1"):
        return 36 / 32
    return 292 / 256 if TYPE_BY_NAME[weight_type].block == _K_BLOCK else 34 / 32


@functools.lru_cache(maxsize=4)
def _checked_tensors(path: str, _stamp: tuple[int, int]) -> tuple[GGUFTensor, ...]:
    """The tensors of a file that is safe for native code; its vocabulary is not kept."""
    return tuple(guards.open_checked(path).tensors.values())


def untouched_code_bytes(smaps: Path = Path("/proc/self/smaps")) -> int:
    """Mapped bytes of llama.cpp's libraries that are not resident yet; 0 where the system does not say."""
    try:
        lines = smaps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    missing = 0
    ours = False
    for line in lines:
        words = line.split()
        if not words[0].endswith(":"):  # the head of a mapping: addresses, permissions, ..., path
            ours = "/llama_cpp/lib/" in words[-1]
        elif ours and words[0] == "Size:":
            missing += int(words[1]) * 1024
        elif ours and words[0] == "Rss:":
            missing -= int(words[1]) * 1024
    return missing
