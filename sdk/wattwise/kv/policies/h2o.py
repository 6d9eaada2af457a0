"""Heavy hitters: rows that got most attention so far stay, beside the newest ones.

H2O (Zhang et al. 2023, https://arxiv.org/abs/2306.14048), per head: attention summed over all queries; half of the
budget for heavy hitters, half for recent tokens. As in ZipCache (He et al. 2024, https://arxiv.org/abs/2405.14256),
sums are divided by the number of queries that could see a row: plain sums favour old rows, which had more chances.
"""

from __future__ import annotations

import numpy as np

from wattwise.kv.policies._attention import by_kv_head, watched
from wattwise.kv.policy import Need, Positions
from wattwise.kv.sight import Sight


class HeavyHitters:
    """See `policy.Policy`."""

    name = "h2o"
    source = "arXiv 2306.14048, normalised as in arXiv 2405.14256"
    needs: frozenset[Need] = frozenset({"attention"})
    queries = 0
    recent_share = 0.5
    positions: Positions = "keep"

    def scores(self, sight: Sight) -> np.ndarray:
        """Mean attention per query that could see the row."""
        total, chances = watched(sight.total), watched(sight.chances)
        return np.stack(
            [by_kv_head(sight, total(layer)) / np.maximum(chances(layer), 1) for layer in range(sight.layers)]
        )


POLICY = HeavyHitters()
