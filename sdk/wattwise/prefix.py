"""Which tokens the KV store holds, how much of a new prompt they spare, and eviction within a budget.

Every change of the store goes through here, so that a prompt is only ever continued from its own beginning, policies
decide at committed positions only, and a rewind never meets a hole: where the row before it is gone, it goes back to
the last one that is held.

The text is numbered by token from its beginning. A row's position is its token's number until holes are closed; from
then on `_tokens` says which token each row is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from wattwise.kv.eviction import Eviction
from wattwise.kv.guard import TAIL, GuardSettings, QualityGuard
from wattwise.kv.held_state import HeldState
from wattwise.kv.moving import CHECKED, carry_out, check_can_move, find_move
from wattwise.kv.policy import get_policy
from wattwise.kv.selection import cannot_hold, choose, rows_of
from wattwise.kv.sight import AttentionBook, Sight, positions_by_head
from wattwise.kv.spill import Range, Spill
from wattwise_devices.errors import ContextOverflow, CorruptArtifact, PlanError
from wattwise_runtimes.contracts import Capabilities, Engine, KVStore
from wattwise_runtimes.spec import ModelSpec

NO_TOKENS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Rows behind an edit. tokens: how many, by: how far, read: tokens that were read for it, error: of their keys
    right behind the edit (see `kv.moving`)."""

    tokens: int
    by: int
    read: int
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardLook:
    """agreement: share of equal first choices before and after. widened_to: the KV budget from now on, None unless it
    was widened, because agreement was less than it should be."""

    agreement: float
    widened_to: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """One eviction. tokens: numbers of those that no head holds any more. rows: dropped by every head. score: their
    mean worth by the policy's measure; None where heads dropped different ones. look: what the guard saw, if it looked.
    """

    tokens: np.ndarray
    rows: int
    score: float | None
    look: GuardLook | None = None


class HeldPrefix:
    """The tokens behind the rows of one engine's KV store, kept in step with it.

    eviction: None holds everything. guard: whether evictions are looked at. spill: where messages go that lose rows.
    Raises PlanError for what this engine cannot carry out.
    """

    def __init__(
        self,
        engine: Engine,
        eviction: Eviction | None = None,
        guard: GuardSettings | None = None,
        spill: Spill | None = None,
    ) -> None:
        self._engine, self._eviction = engine, eviction
        self._ids: list[int] = []
        self._tokens = NO_TOKENS  # of every row; with rows by head, of those that are the same in all heads
        self._anywhere = NO_TOKENS  # tokens that some head holds
        self._has_holes = False
        self._has_moved = False  # holes were closed: positions are not token numbers any more
        self._unchanged = 0
        self._floor = 0  # a rewind goes to this token or a later one, or to the beginning
        self._book: AttentionBook | None = None
        self.evicted = 0  # tokens, since the text began
        self._position_limit = engine.kv.capacity_tokens
        self._spill = spill if eviction is not None else None
        if eviction is not None and spill is not None:
            check_can_spill(engine.capabilities, eviction)
        self.guard = QualityGuard(engine, guard) if guard is not None and eviction is not None else None
        if eviction is not None:
            check_can_evict(engine.capabilities, eviction)
            policy = get_policy(eviction.policy)
            self._position_limit = position_limit(engine.spec, engine.kv.capacity_tokens)
            if eviction.needs_attention:
                spec = engine.spec
                self._book = AttentionBook(spec.layers, spec.heads, spec.kv_heads, policy.queries)

    @property
    def ids(self) -> Sequence[int]:
        """Ids of the text so far, those of evicted rows among them."""
        return self._ids

    @property
    def spill_problem(self) -> str | None:
        """Why the rows of the last eviction could not be put away; None where they could, or need not be."""
        return self._spill.problem if self._spill is not None else None

    @property
    def eviction(self) -> Eviction | None:
        """How rows are dropped; None: never."""
        return self._eviction

    @property
    def rows(self) -> int:
        """How many every head holds."""
        return self._engine.kv.length

    @property
    def unchanged(self) -> int:
        """How many of the first rows are as they were at the last `mark`."""
        return self._unchanged

    def mark(self) -> None:
        """From now on `unchanged` tells how many of today's rows are still the same."""
        self._unchanged = self.rows

    def reusable(self, prompt: Sequence[int]) -> int:
        """How many tokens of `prompt` need not be computed, as `rewind_to` would answer; forgets nothing."""
        return self._rewound(prompt)[0]

    def rewind_to(self, prompt: Sequence[int], protected: np.ndarray = NO_TOKENS) -> int:
        """Forget what does not begin `prompt`; how many of its tokens need not be computed.

        At least the last token is left to compute, because its logits are wanted. protected: tokens that must be held;
        where one of them was evicted (it has been pinned since), the text is read again from there.
        """
        start, position, rows = self._rewound(prompt)
        missing = self.missing(protected[protected < start])
        if missing.size:
            start, position, rows = self._resumable(int(missing[0]))
        if start < len(self._ids):
            self._cut(start, position, rows)
        return start

    def move_to(self, prompt: Sequence[int]) -> Moved | None:
        """Hold the rows behind an edit at their new positions, so that a rewind to `prompt` finds them; None where too
        little stands behind it. Raises PlanError where rows cannot be moved, or are evicted."""
        if self._eviction is not None:
            raise PlanError(
                "rows behind an edit are only moved where all rows are held; with a KV policy they are read again",
                clash=("moving rows", f"KV policy {self._eviction.policy}"),
            )
        check_can_move(self._engine.capabilities)
        move = find_move(self._ids, prompt[:-1])
        if move is None or move.first < self._floor:
            return None
        try:
            error = carry_out(self._engine, move, prompt)
        except BaseException:  # half-way through nothing fits together
            self.clear()
            raise
        self._unchanged = min(self._unchanged, move.first)
        self._ids[:] = prompt[: move.first + move.added + move.kept]
        return Moved(tokens=move.kept, by=move.by, read=move.added + CHECKED, error=error)

    def bring_back(self, start: int, stop: int, protected: np.ndarray) -> bool:
        """Restore the rows of tokens start to stop - 1 from the spill, where they are there; whether they now are held.

        protected: tokens that must stay when others have to go for them. Nothing changes where it cannot be done.
        """
        if self._spill is None or self._eviction is None or self._has_moved:
            return False
        rows = self._spill.take((start, stop))
        if rows is None:
            return False
        kv, eviction = self._engine.kv, self._eviction
        lost = self.missing(np.arange(start, stop))
        must = np.union1d(protected, np.arange(start, stop))
        if kv.length + len(lost) > min(kv.capacity_tokens, eviction.rows):
            self._evict(eviction, must, budget=eviction.budget_tokens - len(lost))
        behind = int(np.searchsorted(self._tokens, stop))
        rest = kv.export(stop) if behind < kv.length else None
        try:
            kv.truncate(start)
            kv.restore(rows)
            if rest is not None:
                kv.restore(rest)
        except BaseException:
            self.clear()
            raise
        first = int(np.searchsorted(self._tokens, start))
        if self._book is not None:
            kept = np.r_[np.arange(first), np.arange(behind, len(self._tokens))]
            self._book.keep(kept)
            self._book.insert(first, stop - start)
        self._tokens = np.union1d(self._tokens, np.arange(start, stop))
        self._anywhere = self._tokens
        self.evicted -= len(lost)
        self._unchanged = 0
        return True

    def missing(self, tokens: np.ndarray) -> np.ndarray:
        """Those of these tokens that some head does not hold."""
        if not self._has_holes:
            return tokens[tokens >= len(self._ids)]
        held = self._tokens
        if self._by_head:
            positions = positions_by_head(self._engine.kv.view(), self._engine.spec.kv_heads)
            held, counts = np.unique(positions, return_counts=True)
            held = held[counts == positions.shape[0] * positions.shape[1]]
        return np.setdiff1d(tokens, held)

    def _rewound(self, prompt: Sequence[int]) -> tuple[int, int, int]:
        """(token, position, rows) that a rewind to the beginning of `prompt` leads to."""
        common = 0
        for held, wanted in zip(self._ids, prompt[:-1], strict=False):
            if held != wanted:
                break
            common += 1
        if common == len(self._ids):
            return common, self._engine.kv.next_position, self.rows
        if common < self._floor:
            return 0, 0, 0
        return (common, common, common) if self._eviction is None else self._resumable(common)

    def cut(self, tokens: int) -> None:
        """Forget all but the first tokens, at most `HeldState.unbroken` of them, and that there were holes."""
        self._cut(tokens, tokens, tokens)
        self._has_holes, self.evicted = False, 0

    def _cut(self, start: int, position: int, rows: int) -> None:
        """Forget the text from token `start` on: the rows from this position, all but so many."""
        self._engine.kv.truncate(position)
        del self._ids[start:]
        self._tokens = self._tokens[: np.searchsorted(self._tokens, start)]
        self._anywhere = self._anywhere[: np.searchsorted(self._anywhere, start)]
        self._unchanged = min(self._unchanged, rows)
        if self._book is not None:
            self._book.cut(rows)
        if self._spill is not None:
            self._spill.cut(start)
        if not start:
            self._forget_holes()

    def check_protected(self, protected: np.ndarray) -> None:
        """Raise BudgetError if these tokens and what always stays leave nothing to evict from."""
        eviction = self._eviction
        if eviction is None:
            return
        needed = len(np.union1d(protected, np.arange(eviction.sinks))) + eviction.recent
        if needed > eviction.budget_tokens:
            raise cannot_hold(needed, eviction.budget_tokens)

    def piece(self, wanted: int) -> int:
        """How many of so many tokens may go into the next forward call: all, or one block where rows are evicted."""
        return wanted if self._eviction is None else min(wanted, self._eviction.block)

    def make_room(self, tokens: int, protected: np.ndarray, messages: Sequence[Range] = ()) -> Dropped | None:
        """Before a forward call of so many tokens (at most a block): evict down to the budget if they would not fit.

        protected: numbers of the tokens that must stay. messages: ranges of tokens that are spilled as a whole. Raises
        BudgetError where they do not fit the budget, and ContextOverflow where positions would leave what the model was
        made for and holes cannot be closed.
        """
        if self._eviction is None:
            return None
        kv, eviction = self._engine.kv, self._eviction
        gone = None
        if kv.length + tokens > min(kv.capacity_tokens, eviction.rows):
            gone = self._evict(eviction, protected, messages)
        if kv.next_position + tokens > self._position_limit:
            self._stay_in_context(tokens)
        return gone

    def extend(self, ids: Sequence[int]) -> None:
        """Note tokens that the engine has just appended."""
        if self._eviction is None or not ids:
            self._ids.extend(ids)
            return
        new = np.arange(len(self._ids), len(self._ids) + len(ids))
        self._tokens, self._anywhere = np.append(self._tokens, new), np.append(self._anywhere, new)
        self._ids.extend(ids)
        if self._book is not None:
            self._book.add(self._engine.kv.view(), len(ids))

    def clear(self) -> None:
        """Forget everything, after a failure that may have left the store half-written."""
        self._engine.kv.clear()
        self._ids.clear()
        self._tokens = self._anywhere = NO_TOKENS
        self._unchanged = 0
        self._forget_holes()

    def close(self) -> None:
        """Give back what is kept on disk. The engine is its owner's to close."""
        if self._spill is not None:
            self._spill.clear()

    @property
    def rows_are_partial(self) -> bool:
        """Whether exported rows lack what only a rewind needs: of sliding-window layers llama.cpp saves those that the
        newest row sees. An engine that does so cannot show all keys either, which is how it is told."""
        return self._engine.spec.sliding_window is not None and not self._engine.capabilities.keys

    def snapshot(self) -> HeldState:
        """Everything but the rows that another store needs to go on from here; valid until this one changes."""
        return HeldState(
            ids=np.asarray(self._ids, np.int32),
            rows=self.rows,
            tokens=self._tokens if self._has_holes else None,
            evicted=self.evicted,
            attention=self._book.seen() if self._book is not None else None,
        )

    @property
    def rows_differ_by_head(self) -> bool:
        """Whether heads may hold different rows: then they can only be exported all together."""
        return self._by_head

    def export_rows(self, first: int, stop: int) -> bytes:
        """Rows number `first` to `stop` - 1 in the engine's form. ValueError for a part where heads differ."""
        kv = self._engine.kv
        if (first, stop) == (0, kv.length):
            return kv.export()
        positions = kv.positions
        return kv.export(int(positions[first]), int(positions[stop - 1]) + 1)

    def resume(self, state: HeldState, rows: Iterable[bytes], *, can_rewind: bool = True) -> None:
        """Be what another store was: `state` is its snapshot, `rows` are all its rows in order, as it exported them.

        can_rewind: False where the rows are only good for going on from their end (see `rows_are_partial`).
        Raises CorruptArtifact where they do not belong together or to this engine; nothing is held then.
        """
        self.clear()
        try:
            for part in rows:
                self._engine.kv.restore(part)
            self._go_on(state)
            self._floor = 0 if can_rewind else len(self._ids)
        except BaseException:
            self.clear()
            raise

    def _go_on(self, state: HeldState) -> None:
        kv, spec, eviction = self._engine.kv, self._engine.spec, self._eviction
        by_head = eviction is not None and eviction.level == "head"
        if kv.length != state.rows:
            raise CorruptArtifact("<held text>", "rows", kv.length, state.rows)
        if state.tokens is not None and eviction is None:
            raise CorruptArtifact("<held text>", "evicted rows", state.evicted, "none, where nothing is evicted")
        state.check(vocab=spec.vocab, by_head=by_head)
        if state.tokens is None and kv.next_position != state.rows:
            raise CorruptArtifact("<held text>", "next position", kv.next_position, state.rows)
        self._ids = state.ids.tolist()
        self._has_holes, self.evicted = state.tokens is not None, state.evicted
        self._has_moved = state.tokens is not None and not np.array_equal(state.tokens, kv.positions)
        if eviction is not None:
            self._tokens = self._anywhere = np.arange(state.rows) if state.tokens is None else state.tokens
            self._see_heads(kv)
        if self._book is not None:
            self._book.take(state.attention, kv.length)
        self.mark()

    def _see_heads(self, kv: KVStore) -> None:
        """Where heads hold different rows, the rows say which tokens those are: positions are token numbers there."""
        if not self._by_head:
            return
        held = positions_by_head(kv.view(), self._engine.spec.kv_heads)
        if not np.array_equal(_same_everywhere(held), self._tokens):
            raise CorruptArtifact("<held text>", "tokens that all heads hold", len(self._tokens), "those of the rows")
        self._anywhere = np.unique(held)

    def _forget_holes(self) -> None:
        self._has_holes, self._has_moved, self.evicted, self._floor = False, False, 0, 0
        if self._spill is not None:
            self._spill.clear()
        if self._book is not None:
            self._book.clear()

    def _resumable(self, common: int) -> tuple[int, int, int]:
        """(token, position, rows) to go back to: the last one up to `common` that follows a row which is held."""
        rows = int(np.searchsorted(self._tokens, common))
        if not rows:
            return 0, 0, 0
        start = int(self._tokens[rows - 1]) + 1
        if self._by_head:
            return start, start, int(np.searchsorted(self._engine.kv.positions, start))
        return start, int(self._engine.kv.positions[rows - 1]) + 1, rows

    @property
    def _by_head(self) -> bool:
        return self._eviction is not None and self._eviction.level == "head" and self._has_holes

    def _sight(self, kv: KVStore) -> Sight:
        view = kv.view()
        positions = positions_by_head(view, self._engine.spec.kv_heads)
        return (
            self._book.sight(view, positions) if self._book is not None else Sight(positions=positions, keys=view.keys)
        )

    def _evict(
        self,
        eviction: Eviction,
        protected: np.ndarray,
        messages: Sequence[Range] = (),
        *,
        budget: int | None = None,
    ) -> Dropped:
        """Drop rows down to the budget, or to a smaller one."""
        budget = eviction.budget_tokens if budget is None else budget
        kv, policy = self._engine.kv, get_policy(eviction.policy)
        tail = self._ids[max(0, len(self._ids) - min(TAIL, eviction.recent - 1)) :]  # rows that stay in any case
        if self.guard is not None:
            self.guard.before(tail)
        sight = self._sight(kv)
        by_head = eviction.level == "head"
        must = np.union1d(protected, np.arange(eviction.sinks))
        if not by_head:  # tokens to positions: they differ once holes were closed
            must = kv.positions[np.isin(self._tokens, must)]
        kept = choose(policy, sight, budget, protected=must, recent=eviction.recent, by_head=by_head)
        rows = rows_of(sight, kept)
        score = None
        if by_head:  # positions are token numbers: they are kept
            kv.drop_by_head(kept)
            self._tokens = _same_everywhere(kept)
            held = np.unique(kept)
        else:
            lost = np.setdiff1d(np.arange(sight.rows), rows)
            self._put_away(self._tokens[lost], messages)
            score = float(policy.scores(sight).mean(axis=(0, 1))[lost].mean())
            kv.drop(kv.positions[lost].tolist())
            held = self._tokens = self._tokens[rows]
        gone, self._anywhere = np.setdiff1d(self._anywhere, held), held
        if self._book is not None:
            self._book.keep(rows)
        self._has_holes = True
        self._unchanged = 0
        self.evicted += len(gone)
        if eviction.positions == "close":
            self._has_moved = True
            close_holes(kv)
        look = self._look(eviction, tail)
        return Dropped(tokens=gone, rows=sight.rows - budget, score=score, look=look)

    def _put_away(self, lost: np.ndarray, messages: Sequence[Range]) -> None:
        """Spill the messages that are about to lose their first row."""
        if self._spill is None or self._has_moved:
            return
        for start, stop in messages:
            is_touched = bool(np.any((lost >= start) & (lost < stop)))
            if is_touched and stop <= len(self._ids) and not self.missing(np.arange(start, stop)).size:
                self._spill.put((start, stop), self._engine.kv.export(start, stop))

    def _look(self, eviction: Eviction, tail: Sequence[int]) -> GuardLook | None:
        """What the guard sees after an eviction, and a wider budget where it asks for one."""
        agreement = self.guard.after(tail) if self.guard is not None else None
        if self.guard is None or agreement is None:
            return None
        wider = eviction.widened()
        if agreement >= self.guard.settings.least or not self.guard.settings.widens or wider is None:
            return GuardLook(agreement=agreement)
        self._eviction = wider
        return GuardLook(agreement=agreement, widened_to=wider.budget_tokens)

    def _stay_in_context(self, tokens: int) -> None:
        """Close the holes, because positions would grow beyond what the model was made for."""
        kv, limit = self._engine.kv, self._position_limit
        if self._by_head or not self._engine.capabilities.shift:
            raise ContextOverflow(prompt_tokens=tokens, limit=limit, held_tokens=kv.next_position)
        self._unchanged, self._has_moved = 0, True
        close_holes(kv)
        if kv.next_position + tokens > limit:
            raise ContextOverflow(prompt_tokens=tokens, limit=limit, held_tokens=kv.next_position)


def _same_everywhere(positions: np.ndarray) -> np.ndarray:
    """Of positions [layers, kv_heads, rows] those that stand in the same place of every head."""
    return positions[0, 0][np.all(positions == positions[:1, :1], axis=(0, 1))]


def close_holes(kv: KVStore) -> None:
    """Give every row the position of its place, run by run, keys turned to it."""
    positions = kv.positions
    steps = np.arange(len(positions)) - positions
    starts = np.flatnonzero(np.diff(steps, prepend=0))
    for first, stop in zip(starts, np.append(starts, len(positions))[1:], strict=True):
        kv.shift(int(positions[first]), int(positions[stop - 1]) + 1, int(steps[first]))


def position_limit(spec: ModelSpec, rows: int) -> int:
    """Positions from here on are beyond what the model was made for, when loaded for so many rows."""
    rope = spec.rope
    if rope is not None and rope.scaling == "longrope" and rows <= rope.original_context:
        return rope.original_context  # the engine took the short factors
    return spec.context


def check_can_spill(can: Capabilities, eviction: Eviction) -> None:
    """Raise PlanError, naming both sides, where evicted rows could not be put back."""
    lacks = None
    if eviction.level == "head":
        lacks = f"KV policy {eviction.policy} by head (say ':token'): rows of one message can only go out for all heads"
    elif eviction.positions == "close":
        lacks = f"KV policy {eviction.policy} with closed positions (say ':keep'): their places are taken"
    elif not can.export:
        lacks = "an engine that cannot export rows"
    if lacks is not None:
        raise PlanError(f"evicted rows cannot be brought back under {lacks}", clash=("KV spill", lacks))


def check_can_evict(can: Capabilities, eviction: Eviction) -> None:
    """Raise PlanError, naming both sides, where an engine that can do this cannot carry an eviction out."""
    policy = get_policy(eviction.policy)
    what = f"KV policy {eviction.policy}"
    lacks = None
    if can.drop == "none":
        lacks = "rows cannot be dropped from this model on this engine"
    elif eviction.level == "head" and can.drop != "head":
        lacks = "heads cannot keep different rows on this engine"
    elif "keys" in policy.needs and not can.keys:
        lacks = "this engine cannot show this model's keys"
    elif "attention" in policy.needs and not can.attention:
        lacks = "this engine was loaded without attention scores"
    elif eviction.positions == "close" and not can.shift:
        lacks = "this engine cannot move this model's keys to other positions"
    if lacks is not None:
        raise PlanError(f"{what} cannot work here: {lacks}", clash=(what, lacks))
