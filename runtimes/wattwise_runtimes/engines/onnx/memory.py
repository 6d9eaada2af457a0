"""What an ONNX model will occupy, from the checked file alone, by rules that were measured (see below).

Weights: onnxruntime packs every matrix into memory of its own. MatMulNBits keeps codes, scales, and a float32 sum
per block; a float matrix is copied as float32, whatever it was stored as. The files stay mapped: embedding tables
count as far as a long text touches them, i.e. wholly.
Compute: with the arena off, the largest set of tensors alive at once. In a gated feed-forward that is four of its
width and four of the model's, per token of a chunk; 5 MiB are library code and tables first touched by a run.
Attention keeps no scores, unless they are asked for: then heads x chunk x context for every layer, and once more inside
the operator. A bias (trees) is chunk x context for each kind of layer. Where keys and values are as wide as the
queries, the heap hardly finds their places again, and most of those of all layers of a chunk add up (a fixed
M_MMAP_THRESHOLD avoids that, at a tenth of the prefill's speed).
Runtime: the session's own tables go by the number of layers; scales of a quantised cache are held twice.
A quantised cache may need a calibration first: another load, with a small float32 cache, that is over before this one;
what a run touches for the first time has then been touched before.
Measured on 400M int4 and int8 and 3M models, chunks 64 to 512, contexts 256 to 1024: within 3 % of the peak; on models
of 3 to 60M of other shapes within 5 %.
"""

from __future__ import annotations

import numpy as np

from wattwise_runtimes.contracts import Ledger, LoadSpec
from wattwise_runtimes.engines.onnx.calibration import calibration_load
from wattwise_runtimes.engines.onnx.codec import BITS
from wattwise_runtimes.engines.onnx.mapped import can_release
from wattwise_runtimes.engines.onnx.signature import Signature
from wattwise_runtimes.formats.onnx_file import OnnxFolder
from wattwise_runtimes.formats.onnx_model import OnnxTensor
from wattwise_runtimes.spec import ModelSpec

_FIRST_RUN_BYTES = 5 << 20
_SESSION_BYTES, _SESSION_LAYER_BYTES = 1 << 20, 200 << 10
_TABLES = ("token_embd.weight", "position_embd.weight")


def predict(folder: OnnxFolder, signature: Signature, spec: ModelSpec, load: LoadSpec) -> Ledger:
    """Peak bytes of loading and running at a full context. The runtime's share is not in it."""
    kv = spec.kv_row_elements() * load.context * _kv_bits(signature, load) // 8
    tensors = list(folder.model.initializers.values())
    if signature.kind == "ours":
        weights = sum(_resident_bytes(tensor, spec) for tensor in tensors)
    else:  # names tell nothing; packed copies of everything, and sums of the blocks where there are scales
        weights = sum(t.nbytes for t in tensors) + sum(t.nbytes for t in tensors if "scale" in t.name)
    kv *= 2 if signature.kind == "growing" else 1  # past and present of one run
    compute = _compute_bytes(signature, spec, load)
    # While loading, all scales and one tensor at a time are mapped beside what is packed; tables are not touched.
    # Float16 matrices are all turned into float32 before the first one is packed, with the file still mapped.
    # The table may or may not be in at that moment (seen both); its half keeps the error small either way.
    halves = sum(t.nbytes // (2 if t.name.startswith(_TABLES) else 1) for t in tensors if t.dtype == "float16")
    mapped = halves + sum(t.nbytes for t in tensors if t.name.endswith("_scales_blocks"))
    loading = (
        weights - _table_bytes(tensors) + mapped + max((t.nbytes for t in tensors if t.dtype != "float16"), default=0)
    )
    runtime = _SESSION_BYTES + _SESSION_LAYER_BYTES * spec.layers
    peak = max(weights + kv + compute, loading)
    if load.kv_type in BITS:
        calibration = predict(folder, signature, spec, calibration_load(spec, load.threads))
        peak = max(peak, loading + _FIRST_RUN_BYTES, calibration.total - calibration.runtime)
        runtime += 2 * 4 * spec.kv_row_elements()
    return Ledger(weights=weights, kv=kv, compute=peak - weights - kv, runtime=runtime)


def _kv_bits(signature: Signature, load: LoadSpec) -> int:
    """Of one element of the cache."""
    return BITS.get(load.kv_type, 8 * np.dtype(signature.kv_dtype).itemsize)


def _resident_bytes(tensor: OnnxTensor, spec: ModelSpec) -> int:
    """Of one initializer that our converter wrote; its name says what reads it."""
    name = tensor.name
    is_table = name.startswith(_TABLES)
    if name.endswith("_scales_blocks"):
        mapped = 0 if can_release() else tensor.nbytes
        return 2 * tensor.nbytes + mapped  # packed, and the sums of the blocks
    if name.endswith("_blocks"):
        return tensor.nbytes
    if len(tensor.shape) != 2 or name.startswith(("rope", "const/")):
        return tensor.nbytes
    is_head = name.startswith("token_embd.weight") and spec.tied_head
    if tensor.dtype == "float16":
        return (tensor.nbytes if is_table else 0) + (2 * tensor.nbytes if is_head or not is_table else 0)
    if tensor.dtype == "float32" and is_table and not name.endswith("_scales"):
        return tensor.nbytes * (2 if is_head else 1)
    return tensor.nbytes


def _table_bytes(tensors: list[OnnxTensor]) -> int:
    return sum(t.nbytes for t in tensors if t.name.startswith(_TABLES) and not t.name.endswith("_blocks"))


def _compute_bytes(signature: Signature, spec: ModelSpec, load: LoadSpec) -> int:
    chunk = min(load.chunk, load.context)
    ffn = spec.ffn if signature.kind == "ours" else 4 * spec.hidden  # a foreign folder does not say
    widths = 4 * max(ffn, spec.heads * spec.head_dim) + 4 * spec.hidden
    total = _FIRST_RUN_BYTES + 4 * chunk * widths + 2 * 4 * spec.vocab
    if spec.kv_heads == spec.heads:
        total += 3 * chunk * 2 * spec.kv_heads * spec.head_dim * spec.layers  # three quarters of them
    if load.tree_leaves > 0:
        kinds = 2 if spec.sliding_layers else 1
        total += np.dtype(signature.kv_dtype).itemsize * chunk * load.context * kinds
    if load.attention_scores:
        total += 4 * spec.heads * chunk * load.context * (spec.layers + 1)
    if signature.rows is None and not signature.last_row_only:
        total += 2 * 4 * chunk * spec.vocab  # logits of every row, and their copy
    return total
