"""Canonical tensors as the tensors of a GGUF file: renamed nowhere, re-ordered, fused and rescaled where llama.cpp
wants it, and read a few rows at a time.

A score scale that llama.cpp does not apply by itself goes into the queries (into q's norm where there is one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_convert.gguf.arch import Arch
from wattwise_convert.gguf.types import type_for
from wattwise_convert.gguf.writer import OutTensor
from wattwise_runtimes.formats.gguf_rows import adjacent_order, reordered
from wattwise_runtimes.spec import ModelSpec, llama3_factors

ReadRows = Callable[[int, int], np.ndarray]


def lower(checkpoint: Checkpoint, arch: Arch, quant: str) -> list[OutTensor]:
    """The tensors to write, in file order."""
    spec = checkpoint.spec
    return [
        OutTensor(
            name=name, shape=shape, type=type_for(name, shape, quant, tied=spec.tied_head), read_rows=read,
            unit=spec.head_dim if arch.adjacent_rope and _is_query_or_key(name) else 1,
        )
        for name, shape, read in _lowered(checkpoint, arch)
    ]  # fmt: skip


def _lowered(checkpoint: Checkpoint, arch: Arch) -> Iterator[tuple[str, tuple[int, ...], ReadRows]]:
    spec = checkpoint.spec
    yield from _rope_factors(spec)
    for name in spec.tensor_shapes():
        if arch.fused_qkv and ".attn_q." in name:
            parts = [_reader(checkpoint, arch, name.replace(".attn_q.", f".attn_{x}.")) for x in "qkv"]
            yield _stacked(name.replace(".attn_q.", ".attn_qkv."), parts)
        elif arch.fused_gate_up and ".ffn_up." in name:
            parts = [_reader(checkpoint, arch, name.replace(".ffn_up.", x)) for x in (".ffn_gate.", ".ffn_up.")]
            yield _stacked(name, parts)
        elif not _fused_away(arch, name):
            source, read = _reader(checkpoint, arch, name)
            yield name, source.shape, read


def _fused_away(arch: Arch, name: str) -> bool:
    return (arch.fused_qkv and (".attn_k." in name or ".attn_v." in name)) or (
        arch.fused_gate_up and ".ffn_gate." in name
    )


def _is_query_or_key(name: str) -> bool:
    return ".attn_q." in name or ".attn_k." in name


def _reader(checkpoint: Checkpoint, arch: Arch, name: str) -> tuple[TensorSource, ReadRows]:
    spec, source = checkpoint.spec, checkpoint.tensors[name]
    read: ReadRows = source.read_rows
    factor = spec.scale / arch.score_scale(spec)
    carrier = ".attn_q_norm." if spec.qk_norm else ".attn_q."
    if carrier in name and not math.isclose(factor, 1.0, rel_tol=1e-7):
        read = _scaled(read, factor)
    if arch.adjacent_rope and _is_query_or_key(name):
        read = reordered(read, adjacent_order(spec.head_dim))
    return source, read


def _scaled(read: ReadRows, factor: float) -> ReadRows:
    return lambda start, stop: read(start, stop) * np.float32(factor)


def _stacked(name: str, parts: list[tuple[TensorSource, ReadRows]]) -> tuple[str, tuple[int, ...], ReadRows]:
    """One tensor whose rows are those of the parts, one after another."""
    starts = np.cumsum([0, *(source.shape[0] for source, _ in parts)])

    def read_rows(start: int, stop: int) -> np.ndarray:
        pieces = [
            read(max(start, first) - first, min(stop, last) - first)
            for (_, read), first, last in zip(parts, starts[:-1].tolist(), starts[1:].tolist(), strict=True)
            if max(start, first) < min(stop, last)
        ]
        return np.concatenate(pieces)

    return name, (int(starts[-1]), *parts[0][0].shape[1:]), read_rows


def _rope_factors(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...], ReadRows]]:
    rope = spec.rope
    if rope is None:
        return
    if rope.scaling == "llama3":
        yield _vector("rope_freqs.weight", llama3_factors(rope))
    if rope.scaling == "longrope":
        yield _vector("rope_factors_long.weight", rope.long_factor)
        yield _vector("rope_factors_short.weight", rope.short_factor)


def _vector(name: str, values: np.ndarray | tuple[float, ...]) -> tuple[str, tuple[int, ...], ReadRows]:
    array = np.asarray(values, np.float32)
    return name, array.shape, lambda start, stop: array[start:stop]
