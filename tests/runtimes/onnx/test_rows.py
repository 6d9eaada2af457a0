"""Positions by head against plain lists, one per head."""

from __future__ import annotations

import numpy as np
import pytest

from wattwise_runtimes.engines.onnx.rows import Rows

LAYERS, HEADS = 2, 3


def table(rows: Rows) -> list[list[int]]:
    return [held.tolist() for held in rows.each()]


@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_changes_equals_plain_lists(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, plain = Rows(LAYERS, HEADS, 200), [list[int]() for _ in range(LAYERS * HEADS)]
    for _ in range(40):
        held, after = len(plain[0]), plain[0][-1] + 1 if plain[0] else 0
        action = rng.integers(4)
        if action == 0 and held < 150:
            new = list(range(after, after + int(rng.integers(1, 8))))
            rows.append(np.array(new))
            plain = [head + new for head in plain]
        elif action == 1 and held > 2:
            count = int(rng.integers(1, held))
            chosen = [[*sorted(rng.permutation(held - 1)[: count - 1].tolist()), held - 1] for _ in plain]
            plain = [[head[i] for i in picked] for head, picked in zip(plain, chosen, strict=True)]
            rows.replace(np.array(plain).reshape(LAYERS, HEADS, count))
        elif action == 2 and held:
            _rewind(rows, plain, int(rng.integers(0, after + 2)))
        elif action == 3 and held > 1 and rows.by_head is None:
            kept = np.flatnonzero(rng.random(held) < 0.8)
            rows.take(kept)
            plain = [[head[i] for i in kept] for head in plain]
        assert table(rows) == plain
        assert (rows.by_head is None) == all(head == plain[0] for head in plain)
        assert rows.first.tolist() == plain[0]
        assert rows.next_position == (plain[0][-1] + 1 if plain[0] else 0)


def _rewind(rows: Rows, plain: list[list[int]], position: int) -> None:
    """In place; refused exactly where heads would not all end with `position` - 1, in the same row."""
    cut = [[p for p in head if p < position] for head in plain]
    is_whole = all(len(head) == len(before) for head, before in zip(cut, plain, strict=True))
    same_length = len({len(head) for head in cut}) == 1
    ends_right = all(not head or head[-1] == position - 1 for head in cut)
    if all(head == plain[0] for head in plain) or is_whole or (same_length and ends_right):
        rows.cut(position)
        plain[:] = cut
        return
    with pytest.raises(ValueError, match="rewind"):
        rows.cut(position)


def test_only_what_differs_is_kept_by_head() -> None:
    rows = Rows(LAYERS, HEADS, 100)
    rows.append(np.arange(50))
    keep = np.tile(np.arange(20, 50), (LAYERS, HEADS, 1))
    rows.replace(keep.copy())
    assert rows.by_head is None
    keep[1, 2, :4] = [3, 5, 8, 21]
    rows.replace(keep)
    assert rows.by_head is not None
    assert rows.by_head.shape == (LAYERS, HEADS, 4)
    assert rows.not_in_all_heads(np.array([3, 20, 21, 24, 60])).tolist() == [3, 20, 60]
    assert rows.of_layer(1)[2].tolist() == [3, 5, 8, 21, *range(24, 50)]
