"""The last tokens of a prompt know what the answer will need: rows that they attend to stay.

SnapKV (Li et al. 2024, https://arxiv.org/abs/2404.14469), per head: attention of an observation window at the end of
what was read, summed over its queries, smoothed along the rows so that neighbours of important rows stay too.
"""

from __future__ import annotations

import numpy as np

from wattwise.kv.policies._attention import by_kv_head, watched
from wattwise.kv.policy import Need, Positions
from wattwise.kv.sight import Sight

_KERNEL = 5  # rows that are averaged, as in the paper's experiments
_WINDOW_SCORE = 1e6  # more than any sum of attention


class SnapKV:
    """See `policy.Policy`."""

    name = "snapkv"
    source = "arXiv 2404.14469"
    needs: frozenset[Need] = frozenset({"attention"})
    queries = 16
    recent_share = 0.0
    positions: Positions = "keep"

    def scores(self, sight: Sight) -> np.ndarray:
        """Smoothed sums; the rows of the window itself come first of all."""
        recent = watched(sight.recent)
        out = np.empty((sight.layers, sight.kv_heads, sight.rows))
        for layer in range(sight.layers):
            window = recent(layer)  # [heads, queries, rows]
            votes = by_kv_head(sight, window.sum(axis=1))
            out[layer] = smoothed(votes)
            out[layer, :, sight.rows - window.shape[1] :] = _WINDOW_SCORE
        return out


def smoothed(votes: np.ndarray) -> np.ndarray:
    """Mean over `_KERNEL` neighbours in the last axis; what lies outside counts as nothing."""
    half = _KERNEL // 2
    padded = np.pad(votes, ((0, 0), (half, half)))
    return np.lib.stride_tricks.sliding_window_view(padded, _KERNEL, axis=1).mean(axis=2)


POLICY = SnapKV()
