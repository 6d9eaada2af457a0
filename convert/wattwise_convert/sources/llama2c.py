"""llama2.c checkpoints: v0 and v1 (float32) and v2 (8-bit groups), with a tok*.bin beside them.

Layouts from llama2.c's export.py (https://github.com/karpathy/llama2.c): a small header, then all tensors one after
the other in a fixed order, each kind for all layers. RoPE rows are in adjacent-pair order. Sizes are checked against
the file's length before anything is read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.formats.checked import read_range, regular_file_size
from wattwise_runtimes.formats.gguf_rows import half_split_order, reordered
from wattwise_runtimes.spec import ModelSpec, RopeSpec
from wattwise_runtimes.text.tokenizer import Tokenizer

MAGIC = 0x616B3432  # "ak42"
_HEADER_BYTES = 256  # of v1 and v2
_LAYER_NORMS = ("attn_norm", "ffn_norm")
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up")  # wq wk wv wo w1 w2 w3
_BOS = 1  # training put it between texts, so a text ends there


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where tensors lie. group: int8 values per scale, 0 for float32."""

    spec: ModelSpec
    order: tuple[str, ...]
    start: int
    group: int = 0
    skipped: int = 0  # unused bytes before an untied head: v0's RoPE tables

    def is_packed(self, name: str) -> bool:
        return self.group > 0 and "norm" not in name

    def nbytes(self, name: str, elements: int) -> int:
        return elements + 4 * (elements // self.group) if self.is_packed(name) else 4 * elements


def claims(path: Path) -> bool:
    """Whether this is such a file."""
    return path.is_file() and path.suffix == ".bin"


def open_source(path: Path) -> Checkpoint:
    """The checkpoint in the file."""
    size = regular_file_size(path)
    layout = _layout(path, read_range(path, 0, min(size, _HEADER_BYTES), "header"))
    spec = layout.spec
    offsets: dict[str, int] = {}
    position = layout.start
    shapes = spec.tensor_shapes()
    for name in layout.order:
        if name == "output.weight":
            position += layout.skipped
        offsets[name] = position
        position += layout.nbytes(name, math.prod(shapes[name]))
    end = position + (layout.skipped if spec.tied_head else 0)
    if size != end:
        raise CorruptArtifact(path, "file size in bytes", size, f"{end} for the sizes in its header")
    tensors = {name: _source(path, layout, name, shapes[name], offsets[name]) for name in shapes}
    tokenizer, files = _tokenizer(path, spec)
    return Checkpoint(spec=spec, tensors=tensors, tokenizer=tokenizer, origin=path, files=(path, *files))


def _layout(path: Path, head: bytes) -> _Layout:
    if len(head) < 28:
        raise CorruptArtifact(path, "file size in bytes", len(head), "at least 28, the header of a llama2.c checkpoint")
    magic, version = struct.unpack_from("<Ii", head)
    if magic != MAGIC:
        return _version_0(path, head)
    if version not in (1, 2) or len(head) < _HEADER_BYTES:
        raise CorruptArtifact(path, "version", version, "1 or 2, with a header of 256 bytes")
    (tied,) = struct.unpack_from("<B", head, 36)
    group = struct.unpack_from("<i", head, 37)[0] if version == 2 else 0
    spec = _spec(path, struct.unpack_from("<7i", head, 8), tied == 1)
    columns = {spec.hidden, spec.ffn, spec.heads * spec.head_dim}
    if version == 2 and (group < 1 or any(c % group for c in columns)):
        raise CorruptArtifact(path, "group size", group, f"a divisor of the row lengths {sorted(columns)}")
    norms = [f"blk.{i}.{part}.weight" for part in _LAYER_NORMS for i in range(spec.layers)]
    order = (*norms, "output_norm.weight", "token_embd.weight", *_per_layer(spec, _MATRICES))
    return _Layout(spec=spec, order=order + _head(spec), start=_HEADER_BYTES, group=group)


def _version_0(path: Path, head: bytes) -> _Layout:
    numbers = struct.unpack_from("<7i", head)
    spec = _spec(path, (*numbers[:5], abs(numbers[5]), numbers[6]), numbers[5] > 0)
    first = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up")
    order = ("token_embd.weight", *_per_layer(spec, first), "output_norm.weight")
    tables = 2 * 4 * spec.context * (spec.head_dim // 2)
    return _Layout(spec=spec, order=order + _head(spec), start=28, skipped=tables)


def _per_layer(spec: ModelSpec, parts: tuple[str, ...]) -> list[str]:
    return [f"blk.{i}.{part}.weight" for part in parts for i in range(spec.layers)]


def _head(spec: ModelSpec) -> tuple[str, ...]:
    return () if spec.tied_head else ("output.weight",)


def _spec(path: Path, numbers: tuple[int, ...], tied: bool) -> ModelSpec:
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
    limits = (1 << 20, 1 << 22, 4096, 1 << 16, 1 << 16, 1 << 24, 1 << 28)
    for name, value, most in zip(names, numbers, limits, strict=True):
        if not 1 <= value <= most:
            raise CorruptArtifact(path, name, value, f"1 to {most}")
    dim, ffn, layers, heads, kv_heads, vocab, context = numbers
    if dim % heads or heads % kv_heads or (dim // heads) % 2:
        raise CorruptArtifact(
            path, "dim, n_heads, n_kv_heads", (dim, heads, kv_heads), "each dividing the one before, heads of even size"
        )
    return ModelSpec(
        architecture="llama", layers=layers, hidden=dim, heads=heads, kv_heads=kv_heads, head_dim=dim // heads,
        ffn=ffn, vocab=vocab, context=context, rope=RopeSpec(dims=dim // heads), norm_eps=1e-5, tied_head=tied,
        bos_id=_BOS, eos_ids=(2, _BOS), add_bos=True, name=path.stem,
    )  # fmt: skip


def _source(path: Path, layout: _Layout, name: str, shape: tuple[int, ...], offset: int) -> TensorSource:
    columns = math.prod(shape[1:])
    if layout.is_packed(name):
        read = _packed_reader(path, layout.group, offset, shape[0], columns)
    else:
        read = _float_reader(path, offset, shape)
    if ".attn_q." in name or ".attn_k." in name:
        read = reordered(read, half_split_order(layout.spec.head_dim))
    return TensorSource(name, shape, "q8 groups" if layout.is_packed(name) else "f32", read)


def _float_reader(path: Path, offset: int, shape: tuple[int, ...]) -> Callable[[int, int], np.ndarray]:
    row_bytes = 4 * math.prod(shape[1:])

    def read_rows(start: int, stop: int) -> np.ndarray:
        data = read_range(path, offset + start * row_bytes, (stop - start) * row_bytes, "weights")
        return np.frombuffer(data, "<f4").reshape(stop - start, *shape[1:]).copy()

    return read_rows


def _packed_reader(path: Path, group: int, offset: int, rows: int, columns: int) -> Callable[[int, int], np.ndarray]:
    """int8 values of the whole tensor, then its float32 scales, one per `group` values of a row."""
    scales_at, per_row = offset + rows * columns, columns // group

    def read_rows(start: int, stop: int) -> np.ndarray:
        count = stop - start
        values = np.frombuffer(read_range(path, offset + start * columns, count * columns, "weights"), np.int8)
        data = read_range(path, scales_at + 4 * start * per_row, 4 * count * per_row, "scales")
        scales = np.frombuffer(data, "<f4").reshape(count, per_row, 1)
        return (values.reshape(count, per_row, group) * scales).astype(np.float32).reshape(count, columns)

    return read_rows


def _tokenizer(path: Path, spec: ModelSpec) -> tuple[Tokenizer | None, tuple[Path, ...]]:
    """The one tokenizer beside the checkpoint that has as many tokens as the model; None if there is none."""
    from wattwise_runtimes.text.llama2c import read_tokenizer_bin

    for candidate in sorted(path.parent.glob("tok*.bin")):
        if candidate != path:
            vocabulary = read_tokenizer_bin(candidate)
            if len(vocabulary.tokens) == spec.vocab:
                return Tokenizer(vocabulary), (candidate,)
    return None, ()
