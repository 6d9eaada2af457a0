"""Shared by the policies that read keys."""

from __future__ import annotations

import numpy as np

from wattwise.kv.sight import Sight
from wattwise_devices.errors import PlanError


def keys_of(sight: Sight, layer: int) -> np.ndarray:
    """float64 [kv_heads, rows, head_dim], so that rounding decides nothing; PlanError where the engine shows none."""
    if sight.keys is None:
        raise PlanError("this policy reads keys, and the engine cannot show them", clash=("KV policy", "engine"))
    return sight.keys(layer).astype(np.float64)
