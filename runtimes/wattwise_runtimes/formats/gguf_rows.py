"""Canonical rows out of stored rows: the re-orderings between files and the canonical form, a few rows at a time.

Two orders of RoPE dimensions exist: half-split (i pairs with i + dims / 2, canonical) and adjacent pairs (2i with
2i + 1, GGUF's llama and llama2.c). They differ by a permutation of the rows of q and k inside each head.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ReadRows = Callable[[int, int], np.ndarray]


def half_split_order(head_dim: int) -> np.ndarray:
    """Where each half-split row of a head lies among its adjacent-pair rows."""
    half = head_dim // 2
    order = np.empty(head_dim, np.int64)
    order[:half] = 2 * np.arange(half)
    order[half:] = 2 * np.arange(half) + 1
    return order


def adjacent_order(head_dim: int) -> np.ndarray:
    """Where each adjacent-pair row of a head lies among its half-split rows."""
    half = head_dim // 2
    order = np.empty(head_dim, np.int64)
    order[0::2] = np.arange(half)
    order[1::2] = np.arange(half, 2 * half)
    return order


def reordered(read: ReadRows, order: np.ndarray) -> ReadRows:
    """A reader whose row r of each head is row order[r] of that head in `read`. Reads whole heads."""
    head_dim = len(order)

    def read_rows(start: int, stop: int) -> np.ndarray:
        first, last = start // head_dim, -(-stop // head_dim)
        stored = read(first * head_dim, last * head_dim)
        wanted = np.arange(start, stop)
        return stored[(wanted // head_dim - first) * head_dim + order[wanted % head_dim]]

    return read_rows


def shifted(read: ReadRows, first_row: int) -> ReadRows:
    """A reader of a part of a fused tensor that begins at `first_row`."""
    return lambda start, stop: read(first_row + start, first_row + stop)
