"""Keys of small norm get much attention: rows whose keys are longest are dropped.

L2 norm (Devoto et al. 2024, https://arxiv.org/abs/2406.11430), per head. Norms are divided by the head's mean, which
changes no order within a head and makes heads comparable where rows are dropped whole.
"""

from __future__ import annotations

import numpy as np

from wattwise.kv.policies._keys import keys_of
from wattwise.kv.policy import Need, Positions
from wattwise.kv.sight import Sight


class KeyNorm:
    """See `policy.Policy`."""

    name = "knorm"
    source = "arXiv 2406.11430"
    needs: frozenset[Need] = frozenset({"keys"})
    queries = 0
    recent_share = 0.0
    positions: Positions = "keep"

    def scores(self, sight: Sight) -> np.ndarray:
        """Minus the norm, in means of its head."""
        out = np.empty((sight.layers, sight.kv_heads, sight.rows))
        for layer in range(sight.layers):
            norms = np.linalg.norm(keys_of(sight, layer), axis=2)
            out[layer] = -norms / np.maximum(norms.mean(axis=1, keepdims=True), 1e-12)
        return out


POLICY = KeyNorm()
