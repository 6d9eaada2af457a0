"""A held text without its rows, as plain arrays; with the rows as the engine exports them it goes on elsewhere.

`HeldPrefix.snapshot` gives one, `HeldPrefix.resume` takes one. What a file says is checked here against itself and the
model before anything is made of it; what the rows mean is the engine's to check.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wattwise_devices.errors import CorruptArtifact

_WHERE = "<held text>"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenAttention:
    """What an `AttentionBook` knows, all float32: total [layers, heads, rows], chances [layers, kv_heads, rows], recent
    [layers, heads, queries, rows]."""

    total: np.ndarray
    chances: np.ndarray
    recent: np.ndarray

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three, in this order."""
        return self.total, self.chances, self.recent


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldState:
    """ids: of the whole text, int32. rows: how many every head holds.

    tokens: where rows were evicted, which token of the text each row is, int64; with rows by head, only those that all
    heads hold in the same place. None: all, in order. evicted: tokens that were lost since the text began, those of an
    end that was taken back since then among them. attention: None where the policy does not look at it.
    """

    ids: np.ndarray
    rows: int
    tokens: np.ndarray | None = None
    evicted: int = 0
    attention: SeenAttention | None = None

    @property
    def unbroken(self) -> int:
        """Tokens from the beginning whose rows are all held, at the positions of their places in the text."""
        if self.tokens is None:
            return len(self.ids)
        return int(np.sum(self.tokens == np.arange(len(self.tokens))))

    def first(self, tokens: int) -> HeldState:
        """The state of the text's first tokens, at most `unbroken` of them, where attention is not looked at."""
        return HeldState(ids=self.ids[:tokens], rows=tokens)

    def check(self, *, vocab: int, by_head: bool) -> None:
        """Raise CorruptArtifact where the parts do not belong together. by_head: heads may hold different rows."""
        total, tokens = len(self.ids), self.tokens
        found: tuple[str, object, object] | None = None
        if total and (self.ids.min() < 0 or self.ids.max() >= vocab):
            found = "token ids", [int(self.ids.min()), int(self.ids.max())], f"0 to {vocab - 1}"
        elif self.evicted < 0:
            found = "evicted tokens", self.evicted, "0 or more"
        elif tokens is None:
            found = ("rows", self.rows, total) if self.rows != total else None
        elif not len(tokens) or tokens[0] < 0 or tokens[-1] != total - 1 or np.any(np.diff(tokens) <= 0):
            found = "numbers of the rows' tokens", tokens[-4:].tolist(), f"increasing, up to {total - 1}"
        elif len(tokens) > self.rows or (len(tokens) < self.rows and not by_head):
            found = "rows with a token", len(tokens), self.rows
        if found is not None:
            raise CorruptArtifact(_WHERE, *found)
