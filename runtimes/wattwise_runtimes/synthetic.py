"""Small random models to measure engines with: any width and depth, any weight type, no vocabulary.

Speed does not depend on what weights say, so one block of rows is quantised once and repeated. GGUF files are written
here; an ONNX folder needs the converter, which stands above this package, so its maker is handed to `rates` by the
caller. Not for tests of correctness: all layers are alike and say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wattwise_runtimes.contracts import Artifact
from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME
from wattwise_runtimes.spec import ModelSpec, RopeSpec

Maker = Callable[[ModelSpec, str, Path], Artifact]  # (what, weight type, folder to write into)

HEAD_DIM, VOCAB, CONTEXT = 64, 256, 1280
NARROW_WIDTH = 64
_NARROW_HEADS, _FFN_WIDTHS = 4, 3
_LAYERS = 8
_ROWS = 64  # quantised once, then repeated


def narrow_spec(layers: int, width: int = NARROW_WIDTH) -> ModelSpec:
    """Hardly any weights: what it costs is dispatch, barriers and attention."""
    return ModelSpec(
        architecture="llama", layers=layers, hidden=width, heads=_NARROW_HEADS, kv_heads=_NARROW_HEADS // 2,
        head_dim=HEAD_DIM, ffn=_FFN_WIDTHS * width, vocab=VOCAB, context=CONTEXT, rope=RopeSpec(dims=HEAD_DIM),
        tied_head=True, name="synthetic-narrow",
    )  # fmt: skip


def wide_spec(nbytes: int, bytes_per_weight: float, multiple: int = 64) -> ModelSpec:
    """A model of about so many bytes of weights in real proportions. multiple: of a row, as the type's blocks want."""
    wanted = nbytes / bytes_per_weight
    multiple = math.lcm(multiple, HEAD_DIM)
    width = max(multiple, multiple * round(math.sqrt(wanted / (11 * _LAYERS)) / multiple))
    ffn = multiple * max(1, round(width * 8 / 3 / multiple))
    heads = width // HEAD_DIM
    kv_heads = heads // 2 if heads % 2 == 0 else heads
    per_layer = width * HEAD_DIM * 2 * (heads + kv_heads) + 3 * width * ffn
    return ModelSpec(
        architecture="llama", layers=max(2, round(wanted / per_layer)), hidden=width, heads=heads, kv_heads=kv_heads,
        head_dim=HEAD_DIM, ffn=ffn, vocab=VOCAB, context=CONTEXT, rope=RopeSpec(dims=HEAD_DIM), tied_head=True,
        name="synthetic-wide",
    )  # fmt: skip


def write_synthetic_gguf(spec: ModelSpec, weight_type: str, folder: Path) -> Artifact:
    """A llama-architecture GGUF file whose matrices are all of one type. Needs llama.cpp's own quantiser."""
    import gguf

    from wattwise_runtimes.engines.llamacpp.ggml import quantise_rows

    kind = TYPE_BY_NAME[weight_type]
    path = folder / f"{spec.name}-{spec.hidden}x{spec.layers}-{weight_type}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    _write_fields(writer, spec)
    rows: dict[int, np.ndarray] = {}
    for name, shape in spec.tensor_shapes().items():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        if shape[1] not in rows:
            rows[shape[1]] = quantise_rows(random_rows(shape[1]), kind)
        data = np.resize(rows[shape[1]], (shape[0], kind.nbytes(shape[1])))
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType(kind.number))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    matrices = sum(math.prod(s) for s in spec.tensor_shapes().values() if len(s) == 2)
    return Artifact(path=path, format="gguf", spec=spec, weights_bytes=kind.nbytes(matrices), quant=weight_type)


def random_rows(columns: int) -> np.ndarray:
    """float32 rows scaled as weights are, so that activations neither vanish nor overflow."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((_ROWS, columns), np.float32) / np.float32(math.sqrt(columns))


def _write_fields(writer: object, spec: ModelSpec) -> None:
    for field, value in {
        "block_count": spec.layers,
        "context_length": spec.context,
        "embedding_length": spec.hidden,
        "feed_forward_length": spec.ffn,
        "head_count": spec.heads,
        "head_count_kv": spec.kv_heads,
        "key_length": spec.head_dim,
        "value_length": spec.head_dim,
        "layer_norm_rms_eps": spec.norm_eps,
        "rope_freq_base": 10000.0,
        "rope_dimension_count": spec.head_dim,
        "vocab_size": spec.vocab,
        "tokenizer_model": "no_vocab",
    }.items():
        getattr(writer, f"add_{field}")(value)
