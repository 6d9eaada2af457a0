"""Token omission via attention: the row that the newest token attends to least goes first.

TOVA (Oren et al. 2024, https://arxiv.org/abs/2401.06104), per layer: attention of the last query, averaged over heads,
so all heads of a layer keep the same rows.
"""

from __future__ import annotations

import numpy as np

from wattwise.kv.policies._attention import watched
from wattwise.kv.policy import Need, Positions
from wattwise.kv.sight import Sight


class Tova:
    """See `policy.Policy`."""

    name = "tova"
    source = "arXiv 2401.06104"
    needs: frozenset[Need] = frozenset({"attention"})
    queries = 1
    recent_share = 0.0
    positions: Positions = "keep"

    def scores(self, sight: Sight) -> np.ndarray:
        """Attention of the last query, the mean over all heads of the layer."""
        recent = watched(sight.recent)
        # Right after a rewind there is no query: all score alike, so the newest rows stay.
        per_layer = np.stack(
            [recent(layer)[:, -1:].sum(axis=1).mean(axis=0, dtype=np.float64) for layer in range(sight.layers)]
        )
        return np.repeat(per_layer[:, None], sight.kv_heads, axis=1)


POLICY = Tova()
