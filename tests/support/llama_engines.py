"""Engines over tiny models, and the reference beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from support.gguf_files import write_tiny_gguf
from support.specs import TINY_SPECS, random_weights
from wattwise_runtimes.contracts import Artifact, Batch, LoadSpec
from wattwise_runtimes.engines.llamacpp import BACKEND
from wattwise_runtimes.engines.llamacpp.engine import LlamaEngine
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.spec import ModelSpec, RopeSpec

WIDE = dataclasses.replace(  # heads of 64: large enough for every KV type, and llama.cpp rotates quantised keys
    TINY_SPECS["llama"], layers=2, hidden=128, heads=2, kv_heads=1, head_dim=64, rope=RopeSpec(dims=64)
)


def ids(n: int, seed: int = 1, vocab: int = 256) -> list[int]:
    """Random token ids."""
    return [int(i) for i in np.random.default_rng(seed).integers(3, vocab, n)]


def artifact(folder: Path, spec: ModelSpec, quant: str = "f32", seed: int = 0) -> Artifact:
    """A tiny model on disk."""
    path = write_tiny_gguf(folder / f"{spec.architecture}-{quant}-{seed}.gguf", spec, random_weights(spec, seed), quant)
    return Artifact(path=path, format="gguf", spec=spec, weights_bytes=path.stat().st_size, quant=quant)


def load(folder: Path, spec: ModelSpec, **options: object) -> LlamaEngine:
    """The engine over a tiny f32 model."""
    return BACKEND.load(artifact(folder, spec), load_spec(**options))


def load_spec(**options: object) -> LoadSpec:
    """A small LoadSpec, f32 keys unless told otherwise."""
    return LoadSpec(**{"context": 64, "chunk": 16, "kv_type": "f32", **options})  # type: ignore[arg-type]


def reference(spec: ModelSpec, **options: object) -> ReferenceEngine:
    """The reference over the same weights."""
    return ReferenceEngine(spec, random_weights(spec), load_spec(**{**options, "kv_type": "f32"}))


def logits(engine: LlamaEngine | ReferenceEngine, tokens: list[int]) -> np.ndarray:
    """All rows, as a copy."""
    return engine.forward(Batch(tokens, logits="all")).copy()


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference in standard deviations of what was wanted."""
    return float(np.abs(got - want).max() / want.std())
