"""Distinctive keys draw attention, so the rows whose keys resemble the others most are dropped.

KeyDiff (Park et al. 2025, https://arxiv.org/abs/2504.15364), per head: the anchor is the mean of the unit keys, a row's
score is minus the cosine between its key and the anchor. Needs no attention, so every fast kernel stays on.
"""

from __future__ import annotations

import numpy as np

from wattwise.kv.policies._keys import keys_of
from wattwise.kv.policy import Need, Positions
from wattwise.kv.sight import Sight

_TINY = 1e-12


class KeyDiff:
    """See `policy.Policy`."""

    name = "keydiff"
    source = "arXiv 2504.15364"
    needs: frozenset[Need] = frozenset({"keys"})
    queries = 0
    recent_share = 0.0
    positions: Positions = "keep"

    def scores(self, sight: Sight) -> np.ndarray:
        """Minus the cosine to the mean direction."""
        out = np.empty((sight.layers, sight.kv_heads, sight.rows))
        for layer in range(sight.layers):
            keys = keys_of(sight, layer)
            unit = keys / np.maximum(np.linalg.norm(keys, axis=2, keepdims=True), _TINY)
            anchor = unit.mean(axis=1, keepdims=True)  # [kv_heads, 1, head_dim]
            length = np.maximum(np.linalg.norm(anchor, axis=2), _TINY)
            out[layer] = -(unit * anchor).sum(axis=2) / length
        return out


POLICY = KeyDiff()
