"""Shared by the policies that read attention: from query heads to the KV heads whose rows are kept or dropped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wattwise.kv.sight import Sight
from wattwise_devices.errors import PlanError


def watched(part: Callable[[int], np.ndarray] | None) -> Callable[[int], np.ndarray]:
    """The part of the sight, or PlanError where attention is not watched."""
    if part is None:
        raise PlanError(
            "this policy reads attention, and the engine was loaded without it", clash=("KV policy", "attention_scores")
        )
    return part


def by_kv_head(sight: Sight, values: np.ndarray) -> np.ndarray:
    """[heads, rows] -> [kv_heads, rows]: the mean over the query heads that share a KV head."""
    return values.reshape(sight.kv_heads, -1, values.shape[-1]).mean(axis=1, dtype=np.float64)
