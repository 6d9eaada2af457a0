"""Made-up caches for tests of policies: random keys, and attention that is a real causal softmax."""

from __future__ import annotations

import numpy as np

from wattwise.kv.sight import AttentionBook, Sight, positions_by_head
from wattwise_runtimes.contracts import KVView

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 3, 4, 2, 8


def causal_attention(rows: int, queries: int, seed: int) -> np.ndarray:
    """float32 [layers, heads, queries, rows]: the queries are the last rows, and see nothing after themselves."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (LAYERS, HEADS, queries, rows))
    query, row = np.arange(rows - queries, rows)[:, None], np.arange(rows)[None, :]
    scores[:, :, row > query] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def made_up_view(rows: int, queries: int, seed: int = 0) -> KVView:
    """A view after a forward call of `queries` tokens that filled the cache to `rows` rows."""
    keys = np.random.default_rng(seed + 1).normal(0, 1, (LAYERS, KV_HEADS, rows, HEAD_DIM)).astype(np.float32)
    attention = causal_attention(rows, queries, seed)
    return KVView(
        positions=np.arange(rows, dtype=np.int64),
        layers=LAYERS,
        keys=lambda layer: keys[layer],
        attention=lambda layer: attention[layer],
    )


def made_up_sight(rows: int = 40, queries: int = 16, seed: int = 0) -> Sight:
    """What a policy sees after reading `rows` tokens in one call."""
    view = made_up_view(rows, rows, seed)
    book = AttentionBook(LAYERS, HEADS, KV_HEADS, queries)
    book.add(view, rows)
    return book.sight(view, positions_by_head(view, KV_HEADS))
