"""The formulas of the papers once more, row by row and in float64: what the policies are held against."""

from __future__ import annotations

import numpy as np

from wattwise.kv.sight import Sight


def best(scores: list[float], budget: int) -> list[int]:
    """The newest row, and the best others; of equal ones the newer."""
    last = len(scores) - 1
    ranked = sorted(range(last), key=lambda row: (-scores[row], -row))
    return sorted([*ranked[: budget - 1], last])


def plain_keydiff(sight: Sight, layer: int, head: int) -> list[float]:
    keys = sight.keys(layer)[head].astype(np.float64)
    units = [key / np.sqrt(sum(x * x for x in key)) for key in keys]
    anchor = sum(units) / len(units)
    return [-float(np.dot(u, anchor) / np.sqrt(np.dot(anchor, anchor))) for u in units]


def plain_knorm(sight: Sight, layer: int, head: int) -> list[float]:
    return [-float(np.sqrt((key.astype(np.float64) ** 2).sum())) for key in sight.keys(layer)[head]]


def heads_of(sight: Sight, layer: int, head: int) -> range:
    """The query heads that share a KV head."""
    group = len(sight.recent(layer)) // sight.kv_heads
    return range(head * group, (head + 1) * group)


def plain_snapkv(sight: Sight, layer: int, head: int) -> list[float]:
    window = sight.recent(layer)
    votes = [
        sum(float(window[h, q, row]) for h in heads_of(sight, layer, head) for q in range(16))
        for row in range(sight.rows)
    ]
    pooled = [sum(votes[max(0, r - 2) : r + 3]) for r in range(sight.rows)]
    return [1e9 if r >= sight.rows - 16 else pooled[r] for r in range(sight.rows)]


def plain_h2o(sight: Sight, layer: int, head: int) -> list[float]:
    total = sight.total(layer)
    return [
        sum(float(total[h, row]) for h in heads_of(sight, layer, head)) / (sight.rows - row)
        for row in range(sight.rows)
    ]


def plain_tova(sight: Sight, layer: int, head: int) -> list[float]:
    return [
        float(np.mean([sight.recent(layer)[h, -1, row] for h in range(len(sight.recent(layer)))]))
        for row in range(sight.rows)
    ]


FORMULAS = {"keydiff": plain_keydiff, "knorm": plain_knorm, "snapkv": plain_snapkv, "tova": plain_tova}
