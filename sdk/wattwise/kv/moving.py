"""An edit in the middle of a text: the rows behind it are moved to their new positions instead of being read again.

Positional Integrity Encoding (He et al. 2024, https://arxiv.org/abs/2407.03227): only the edited part is read; keys
behind it are turned to their new positions, values stay. It is an approximation, because those rows still speak of the
old text. How far off they are is measured where it is worst, right behind the edit: the first moved tokens are read
exactly as well, their keys compared, and the exact rows kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattwise_devices.errors import PlanError
from wattwise_runtimes.contracts import Batch, Capabilities, Engine

CHECKED = 16  # moved tokens that are read exactly as well
_ANCHOR = 8  # tokens at the end of the old text by which it is found again in the new one
LEAST = 4 * CHECKED  # moved tokens below which reading again costs as little


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Both texts begin with `first` equal tokens, and old[first + removed :] is new[first + added :][:kept]."""

    first: int
    removed: int
    added: int
    kept: int

    @property
    def by(self) -> int:
        """How far the kept tokens go."""
        return self.added - self.removed


def find_move(old: Sequence[int], new: Sequence[int]) -> Move | None:
    """The edit that leads from what is held to the beginning of a prompt; None where too little would be moved."""
    first = 0
    while first < min(len(old), len(new)) and old[first] == new[first]:
        first += 1
    if len(old) - first < LEAST:
        return None
    was, now = np.asarray(old), np.asarray(new)
    anchor = was[-_ANCHOR:]
    windows = np.lib.stride_tricks.sliding_window_view(now[first:], _ANCHOR) if len(now) - first >= _ANCHOR else None
    ends = np.flatnonzero((windows == anchor).all(axis=1)) + first + _ANCHOR if windows is not None else []
    best = None
    for end in (int(e) for e in ends):
        most = min(len(old), end) - first  # neither text gives more
        same = was[len(old) - most :][::-1] == now[end - most : end][::-1]
        kept = most if same.all() else int(np.argmin(same))
        if best is None or kept > best.kept:
            best = Move(first=first, removed=len(old) - first - kept, added=end - first - kept, kept=kept)
    return best if best is not None and best.kept >= LEAST else None


def check_can_move(can: Capabilities) -> None:
    """Raise PlanError where an engine that can do this cannot move rows."""
    lacks = [name for name, has in (("drop rows", can.drop != "none"), ("turn keys", can.shift),
                                    ("export rows", can.export), ("show keys", can.keys)) if not has]  # fmt: skip
    if lacks:
        raise PlanError(
            f"rows behind an edit cannot be moved here: this engine cannot {lacks[0]} of this model. Read them again.",
            clash=("moving rows", f"an engine that cannot {lacks[0]}"),
        )


def carry_out(engine: Engine, move: Move, new: Sequence[int]) -> float:
    """Make the store hold new[: first + added + kept]; the error of the moved keys right behind the edit.

    error: root mean square difference between moved and exact keys over that of the exact ones, the mean over layers.
    The store must hold every row of the old text, at its position.
    """
    kv = engine.kv
    if move.removed:
        kv.drop(range(move.first, move.first + move.removed))
    if move.by:
        kv.shift(move.first + move.removed, kv.next_position, move.by)
    start = move.first + move.added
    moved = _keys(engine, move.first, CHECKED)
    rest = kv.export(start + CHECKED)
    kv.truncate(move.first)
    stop = start + CHECKED
    engine.forward(Batch(new[move.first : stop], logits="none"))
    exact = _keys(engine, start, CHECKED)
    kv.restore(rest)
    return float(np.mean([_relative(a, b) for a, b in zip(moved, exact, strict=True)]))


def _keys(engine: Engine, row: int, count: int) -> list[np.ndarray]:
    """Of some rows, per layer, float32 [kv_heads, count, head_dim]."""
    view = engine.kv.view()
    assert view.keys is not None  # see check_can_move
    return [view.keys(layer)[:, row : row + count].copy() for layer in range(view.layers)]


def _relative(moved: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.square(moved - exact).mean() / max(float(np.square(exact).mean()), 1e-30)))
