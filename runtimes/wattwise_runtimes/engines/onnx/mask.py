"""Additive attention biases, for what the graph's own causal and window rules cannot say: trees, holes in windows.

A row is seen if it is earlier or the token itself, inside the sliding window by position, and, among the nodes of
a tree, an ancestor. The operator adds the bias to the scores before the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wattwise_runtimes.trees import ancestors

HIDDEN = {np.float32: np.float32(-1e30), np.float16: np.float16(-65504)}


def hide_siblings(bias: np.ndarray, parents: Sequence[int], hidden: np.generic) -> None:
    """In bias [n, total], hide from each node of a tree (the last n rows) every node that is not its ancestor."""
    n = len(parents)
    bias[:, -n:][~ancestors(parents)] = hidden


def hide_outside_window(
    bias: np.ndarray, queries: np.ndarray, rows: np.ndarray, window: int, hidden: np.generic
) -> None:
    """In bias [n, total], hide the rows that lie `window` or more positions before the query."""
    bias[queries[:, None] - rows[None, :] >= window] = hidden
