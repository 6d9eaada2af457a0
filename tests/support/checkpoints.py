"""Checkpoints in memory for converter tests: any tiny spec with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from support.specs import TINY_SPECS, random_weights
from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_runtimes.spec import ModelSpec
from wattwise_runtimes.text.tokenizer import Tokenizer


def checkpoint_of(
    spec: ModelSpec, weights: Mapping[str, np.ndarray], tokenizer: Tokenizer | None = None, dtype: str = "f32"
) -> Checkpoint:
    """A checkpoint over arrays."""
    tensors = {name: TensorSource.from_array(name, array, dtype) for name, array in weights.items()}
    return Checkpoint(spec=spec, tensors=tensors, tokenizer=tokenizer, origin=Path("tiny"))


def tiny_checkpoint(key: str = "llama", *, tokenizer: Tokenizer | None = None, **changes: object) -> Checkpoint:
    """A tiny random model; `changes` are fields of its spec."""
    spec = dataclasses.replace(TINY_SPECS[key], **changes)  # type: ignore[arg-type]
    return checkpoint_of(spec, random_weights(spec), tokenizer)
