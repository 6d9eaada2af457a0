"""Sinks and a window: the first tokens, which take much of the attention whatever they say, and the newest ones.

StreamingLLM (Xiao et al. 2023, https://arxiv.org/abs/2309.17453); LM-Infinite (Han et al. 2023,
https://arxiv.org/abs/2308.16137). Both give tokens positions by their place in the cache, so keys are turned and
positions never exceed the budget: a conversation may be endless. What leaves the window is forgotten.
"""

from __future__ import annotations

import numpy as np

from wattwise.kv.policy import Need, Positions
from wattwise.kv.sight import Sight


class Window:
    """See `policy.Policy`."""

    name = "window"
    source = "arXiv 2309.17453"
    needs: frozenset[Need] = frozenset()
    queries = 0
    recent_share = 0.0
    positions: Positions = "close"

    def scores(self, sight: Sight) -> np.ndarray:
        """The newer, the better; the sinks are protected by the caller."""
        return sight.positions.astype(np.float64)


POLICY = Window()
