"""From a LoadSpec to llama.cpp's parameter structs: the one place that decides how models and contexts are made.

Weights are read into memory of our own (load mode "none"), never mapped: on most CPUs llama.cpp repacks quantised
weights into buffers of its own, and a mapped file would then be resident a second time. Read this way, resident
memory is the tensors once and predictable to the page; the price is that two processes do not share weights.
Everything is computed on the CPU: where a layer runs is not yet part of a LoadSpec.
"""

from __future__ import annotations

import ctypes
from typing import Any

from wattwise_runtimes.contracts import LoadSpec
from wattwise_runtimes.engines.llamacpp.guards import padded_cells
from wattwise_runtimes.engines.llamacpp.kv_types import kv_type
from wattwise_runtimes.engines.llamacpp.native import Native
from wattwise_runtimes.spec import ModelSpec

_NO_DEVICES = (ctypes.c_void_p * 1)(None)
_LOAD_MODE_NONE = 0
_FLASH_ATTENTION_OFF, _FLASH_ATTENTION_ON = 0, 1
_OUTPUT_BYTES = 4 << 20  # logits of one chunk, roughly; small beside the model, as most calls want one row
_LEAST_OUTPUT_ROWS, _MOST_OUTPUT_ROWS = 8, 32
_TREE_TOKENS_PER_LEAF, _LEAST_TREE_TOKENS = 8, 32


def chunk_tokens(load: LoadSpec) -> int:
    """Tokens of one native call: a batch never exceeds the context, or llama.cpp ends the process."""
    return min(load.chunk, padded_cells(load.context))


def tree_tokens(load: LoadSpec) -> int:
    """Largest tree batch: one native call."""
    if not load.tree_leaves:
        return 0
    most = min(padded_cells(load.context), max(_LEAST_TREE_TOKENS, _TREE_TOKENS_PER_LEAF * load.tree_leaves))
    return min(most, load.context)


def batch_tokens(load: LoadSpec) -> int:
    """Tokens that the native batch has room for: never fewer than sequences, or llama.cpp ends the process."""
    return max(chunk_tokens(load), tree_tokens(load), sequences(load))


def output_rows(spec: ModelSpec, load: LoadSpec) -> int:
    """Rows of logits that one native call may produce. More are fetched in smaller chunks, to save memory."""
    rows = min(_MOST_OUTPUT_ROWS, max(_LEAST_OUTPUT_ROWS, _OUTPUT_BYTES // (4 * spec.vocab)))
    return max(min(rows, chunk_tokens(load)), tree_tokens(load), sequences(load))


def flash_attention(load: LoadSpec) -> bool:
    """Whether to use flash attention: always, except for f32 keys and values, and where its weights are to be read.

    llama.cpp's flash attention computes in f16 (f32 rows are even converted on every call), which moves logits by
    some 3e-3 of their standard deviation. Whoever asks for f32 asks for exactness, and pays with score buffers. And it
    never has the attention weights in memory, so whoever asks for those pays the same. Without it values are stored
    transposed, which everything that reads rows has to know.
    """
    return load.kv_type != "f32" and not load.attention_scores


def sequences(load: LoadSpec) -> int:
    """The text, and a spare one for restoring rows or one per leaf of a tree."""
    return 1 + max(1, load.tree_leaves)


def model_params(native: Native) -> Any:
    """llama_model_params for loading all weights into memory."""
    params = native.api.llama_model_default_params()
    params.devices = pointer(_NO_DEVICES)  # the CPU alone, also where llama.cpp was built with more
    params.n_gpu_layers = 0
    params.load_mode = _LOAD_MODE_NONE
    params.use_extra_bufts = True
    return params


def context_params(native: Native, spec: ModelSpec, load: LoadSpec) -> Any:
    """llama_context_params for this request."""
    params = native.api.llama_context_default_params()
    params.n_ctx = load.context
    params.n_batch = params.n_ubatch = batch_tokens(load)
    params.n_seq_max = sequences(load)
    params.n_outputs_max = output_rows(spec, load)
    params.n_threads = load.threads
    params.n_threads_batch = load.threads_batch or load.threads
    params.type_k = params.type_v = kv_type(load.kv_type).number
    params.flash_attn_type = _FLASH_ATTENTION_ON if flash_attention(load) else _FLASH_ATTENTION_OFF
    params.kv_unified = True
    params.swa_full = True  # a window-sized cache could not rewind
    params.no_perf = True
    return params


def pointer(array: ctypes.Array[Any]) -> int:
    """Address of a ctypes array, for a struct field declared as a bare pointer."""
    return ctypes.addressof(array)
