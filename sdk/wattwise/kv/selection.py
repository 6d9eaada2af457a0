"""From scores to the rows that stay: the protected ones and the newest always, then the best of the rest.

Where the engine can only drop whole rows, a row's worth is the mean over layers and heads. Equal scores go to the newer
row, so that the choice never depends on the sorting algorithm.
"""

from __future__ import annotations

import numpy as np

from wattwise.kv.policy import Policy
from wattwise.kv.sight import Sight
from wattwise_devices.errors import BudgetError


def choose(
    policy: Policy, sight: Sight, budget_rows: int, *, protected: np.ndarray, recent: int, by_head: bool
) -> np.ndarray:
    """Positions that stay: int64 [budget_rows], or with by_head [layers, kv_heads, budget_rows], increasing.

    protected: positions that must stay (those that are not held any more count for nothing). recent: how many of the
    newest rows stay at least; the policy's own share may be more. Raises BudgetError where they do not fit the budget.
    """
    if sight.rows <= budget_rows:
        return sight.positions if by_head else sight.positions[0, 0]
    newest = max(1, recent, int(policy.recent_share * budget_rows))
    scores = policy.scores(sight)
    positions = sight.positions
    if not by_head:
        scores, positions = scores.mean(axis=(0, 1), keepdims=True), positions[:1, :1]
    must = np.isin(positions, protected)
    must[:, :, sight.rows - newest :] = True
    needed = int(must.sum(axis=2).max())
    if needed > budget_rows:
        raise cannot_hold(needed, budget_rows)
    ranked = np.where(must, np.inf, scores)
    order = np.lexsort((-np.arange(sight.rows) + np.zeros_like(ranked), -ranked), axis=-1)
    rows = np.sort(order[:, :, :budget_rows], axis=2)
    kept = np.take_along_axis(positions, rows, axis=2)
    return kept if by_head else kept[0, 0]


def rows_of(sight: Sight, kept: np.ndarray) -> np.ndarray:
    """Row numbers of kept positions, in the same shape."""
    if kept.ndim == 1:
        return np.searchsorted(sight.positions[0, 0], kept)
    rows = np.empty_like(kept)
    for layer, heads in enumerate(kept):
        for head, wanted in enumerate(heads):
            rows[layer, head] = np.searchsorted(sight.positions[layer, head], wanted)
    return rows


def cannot_hold(needed: int, budget_rows: int) -> BudgetError:
    """The error of a budget that is smaller than what must stay."""
    return BudgetError(
        f"the KV budget of {budget_rows} tokens cannot hold what must stay: {needed} tokens of system prompt, tools, "
        f"pinned messages, first and newest tokens. Allow more, or pin less.",
        needed=needed,
        allowed=budget_rows,
        would_fit=[f"a KV budget of {needed} tokens"],
    )
