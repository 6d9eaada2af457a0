"""The book of attention: what it adds up must be what a whole causal attention matrix says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_up import HEADS, KV_HEADS, LAYERS, causal_attention, made_up_view

from wattwise.kv.sight import AttentionBook, positions_by_head
from wattwise_devices.errors import PlanError

PARTS = (10, 1, 1, 7, 1)


def filled(queries: int = 4) -> tuple[AttentionBook, list[np.ndarray]]:
    """A book after several calls, and the attention of each call."""
    book = AttentionBook(LAYERS, HEADS, KV_HEADS, queries)
    rows, seen = 0, []
    for number, tokens in enumerate(PARTS):
        rows += tokens
        book.add(made_up_view(rows, tokens, seed=number), tokens)
        seen.append(causal_attention(rows, tokens, seed=number))
    return book, seen


def whole(seen: list[np.ndarray]) -> np.ndarray:
    """All queries one below the other, [layers, heads, queries, rows]."""
    rows = seen[-1].shape[3]
    wide = [np.pad(a, ((0, 0), (0, 0), (0, 0), (0, rows - a.shape[3]))) for a in seen]
    return np.concatenate(wide, axis=2)


def sight_of(book: AttentionBook):
    view = made_up_view(book.rows, 1)
    return book.sight(view, positions_by_head(view, KV_HEADS))


def test_sums_and_last_queries_are_those_of_the_whole_matrix() -> None:
    book, seen = filled()
    matrix, sight = whole(seen), sight_of(book)
    for layer in range(LAYERS):
        assert np.allclose(sight.total(layer), matrix[layer].sum(axis=1), atol=1e-6)
        assert np.array_equal(sight.recent(layer), matrix[layer][:, -4:])
        assert np.array_equal(sight.chances(layer), np.tile(20 - np.arange(20), (KV_HEADS, 1)))


def test_dropped_rows_leave_and_the_others_keep_their_sums() -> None:
    book, seen = filled()
    rows = np.array([0, 3, 4, 11, 19])
    book.keep(rows)
    matrix, sight = whole(seen), sight_of(book)
    assert book.rows == 5
    for layer in range(LAYERS):
        assert np.allclose(sight.total(layer), matrix[layer].sum(axis=1)[:, rows], atol=1e-6)
        assert np.array_equal(sight.recent(layer), matrix[layer][:, -4:][:, :, rows])
    book.add(made_up_view(7, 2, seed=50), 2)
    last = causal_attention(7, 2, seed=50)
    again = sight_of(book)
    assert np.allclose(again.total(1)[:, :5], matrix[1].sum(axis=1)[:, rows] + last[1].sum(axis=1)[:, :5], atol=1e-6)
    assert again.chances(1)[0].tolist() == [22, 19, 18, 11, 3, 2, 1]


def test_rows_by_head_follow_their_query_heads() -> None:
    book, seen = filled()
    rows = np.sort(np.random.default_rng(3).permuted(np.tile(np.arange(20), (LAYERS, KV_HEADS, 1)), axis=2)[:, :, :6])
    book.keep(rows)
    matrix, sight = whole(seen), sight_of(book)
    for layer in range(LAYERS):
        for head in range(HEADS):
            chosen = rows[layer, head // (HEADS // KV_HEADS)]
            assert np.allclose(sight.total(layer)[head], matrix[layer, head].sum(axis=0)[chosen], atol=1e-6)


def test_a_rewind_forgets_the_later_rows_and_queries() -> None:
    book, seen = filled()
    book.cut(18)
    assert book.rows == 18
    assert sight_of(book).recent(0).shape == (HEADS, 2, 18)
    assert np.array_equal(sight_of(book).recent(0), whole(seen)[0][:, 16:18, :18])
    book.cut(50)
    assert book.rows == 18
    book.clear()
    assert book.rows == 0


def test_attention_that_does_not_belong_here_is_refused() -> None:
    book, _ = filled()
    with pytest.raises(ValueError, match="20 rows"):
        book.add(made_up_view(25, 1), 1)
    with pytest.raises(PlanError, match="attention_scores"):
        book.add(dataclasses.replace(made_up_view(21, 1), attention=None), 1)
