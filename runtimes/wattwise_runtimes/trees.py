"""Token trees as parent lists (see `contracts.Batch`): who sees whom."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ancestors(parents: Sequence[int]) -> np.ndarray:
    """bool [n, n]: row i marks the nodes on the path from the root to i, i included."""
    among = np.eye(len(parents), dtype=bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            among[i] |= among[parent]
    return among
