"""Which saved rows spare the most of a prompt: the longest common prefix over all sessions.

Rows of a text that has never lost any are right for whatever text begins the same way. Where rows were evicted, what
is left was chosen by what came later: it is right for the session itself, and for another text only if that goes on
from all of it, or up to the first hole. Sums of attention speak of what came later, too: there is no stopping half-way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattwise.kv.held_state import HeldState
from wattwise.sessions.index import RowsIndex, Segment
from wattwise.sessions.library import Library
from wattwise_devices.errors import LoadError

_LEAST_TOKENS = 16  # of another session's rows: fewer are computed before they are found
_MOST_ROWS = 64  # that are read for each token spared: computing one costs more than reading that many


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Rows of one session that begin a prompt. tokens: of the prompt that they spare. state: of the text whose rows are
    in `segments`. cut: tokens to keep of it, None where a rewind does the rest."""

    session: str
    index: RowsIndex
    tokens: int
    state: HeldState
    segments: tuple[Segment, ...]
    cut: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A prompt to find rows for. own: the session that it belongs to. protected: numbers of tokens that must not be
    missing. capacity_rows: what the store can hold. held: tokens of the prompt that it holds already. ends_only: rows
    of a file are only good for going on from its end (`HeldPrefix.rows_are_partial`)."""

    prompt: np.ndarray
    own: str | None
    protected: np.ndarray
    capacity_rows: int
    held: int
    ends_only: bool = False


def matches(library: Library, sessions: Sequence[str], wanted: Wanted) -> list[Match]:
    """What spares more than is held and is worth reading, the best first. Sessions without sound rows have none."""
    found: list[Match] = []
    for session in sessions:
        try:
            index = library.index(session)
        except LoadError:
            continue
        match = _match(session, index, wanted) if index is not None else None
        if match is not None and _is_worth_it(match, wanted):
            found.append(match)
    return sorted(found, key=lambda match: (-match.tokens, match.session != wanted.own, match.state.rows))


def _is_worth_it(match: Match, wanted: Wanted) -> bool:
    gain = match.tokens - wanted.held
    least = 1 if match.session == wanted.own else _LEAST_TOKENS
    return gain >= least and match.state.rows <= _MOST_ROWS * gain


def _match(session: str, index: RowsIndex, wanted: Wanted) -> Match | None:
    state = index.state
    common = common_tokens(state.ids, wanted.prompt[:-1])
    is_own, is_whole = session == wanted.own, common == len(state.ids)
    if state.tokens is None and index.attention is None:
        return _beginning(session, index, common, wanted)
    if state.rows > wanted.capacity_rows:
        return None
    tokens, cut = common, None
    if is_own or (is_whole and _holds(state, wanted.protected)):
        if state.tokens is not None:  # the text goes on after the last row below `common` that is held
            below = int(np.searchsorted(state.tokens, common))
            tokens = int(state.tokens[below - 1]) + 1 if below else 0
    elif index.attention is None:
        tokens = cut = min(common, state.unbroken)
    else:
        return None
    return Match(session=session, index=index, tokens=tokens, state=state, segments=index.segments, cut=cut)


def _beginning(session: str, index: RowsIndex, common: int, wanted: Wanted) -> Match | None:
    """As many segments as hold what is common, and as fit."""
    needed = [s for s in index.segments if s.start < common and s.stop <= wanted.capacity_rows]
    if wanted.ends_only:
        needed = [s for s in needed if s.stop <= common]
    if not needed:
        return None
    rows = needed[-1].stop
    state = index.state.first(rows)
    return Match(session=session, index=index, tokens=min(common, rows), state=state, segments=tuple(needed))


def common_tokens(ids: np.ndarray, prompt: np.ndarray) -> int:
    """How many tokens both begin with."""
    n = min(len(ids), len(prompt))
    differ = np.flatnonzero(ids[:n] != prompt[:n])
    return int(differ[0]) if differ.size else n


def _holds(state: HeldState, protected: np.ndarray) -> bool:
    """Whether no protected token of the text has been evicted."""
    return state.tokens is None or bool(np.isin(protected[protected < len(state.ids)], state.tokens).all())
