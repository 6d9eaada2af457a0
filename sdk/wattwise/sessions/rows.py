"""Rows between one loaded model and the library: saved after a turn, read back where they begin a prompt.

While nothing before them changes, only rows since the last save are exported, as one more file: `_segments` are the
files that hold the first rows, as far as `HeldPrefix.unchanged` says that they are still the same.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np

from wattwise.events import SessionEvent, SessionRefused, SessionResumed
from wattwise.kv.held_state import HeldState
from wattwise.kv.policy import get_policy
from wattwise.planning import Plan
from wattwise.prefix import HeldPrefix
from wattwise.sessions.fingerprint import Fingerprint, fingerprint, model_hash
from wattwise.sessions.index import RowsIndex, Segment, attention_bytes, read_attention, write_index
from wattwise.sessions.library import Library
from wattwise.sessions.prefixes import Match, Wanted, common_tokens, matches
from wattwise.sessions.room import Room
from wattwise.units import format_bytes
from wattwise_devices.errors import BackendError, CorruptArtifact, LoadError, SessionError
from wattwise_devices.process_memory import resident_memory
from wattwise_runtimes.contracts import Engine
from wattwise_runtimes.text.tokenizer import Tokenizer

_SEGMENT_BYTES = 16 << 20  # the most that is exported at once
_MOST_SEGMENTS = 64  # then all rows are written again, as few files
_EXPORT_COPIES = 3  # of a segment while an engine exports it; some also copy all rows that they hold


class ModelRows:
    """The rows of one model's KV store, and what of them is on disk. One call at a time, while no reply is made."""

    def __init__(
        self, library: Library, held: HeldPrefix, engine: Engine, plan: Plan, tokenizer: Tokenizer | None
    ) -> None:
        self._library, self._held, self._engine, self._plan = library, held, engine, plan
        self._tokenizer = tokenizer
        self._fingerprint: Fingerprint | None = None
        self._segments: list[Segment] = []
        self._refused: dict[str, RowsIndex] = {}

    def recall(
        self, prompt: Sequence[int], protected: np.ndarray, own: str | None, *, is_expected: bool
    ) -> list[SessionEvent]:
        """Bring in the saved rows that spare the most of `prompt`, if they spare more than is held; what came of it.

        own: the session that the prompt belongs to. is_expected: its rows should be there, so it is told if not.
        Raises nothing for files: what cannot be used is refused, and computed.
        """
        began = time.perf_counter()
        told: list[SessionEvent] = []
        wanted = Wanted(
            prompt=np.asarray(prompt, np.int32), own=own, protected=protected,
            capacity_rows=self._engine.kv.capacity_tokens, held=self._held.reusable(prompt),
            ends_only=self._held.rows_are_partial,
        )  # fmt: skip
        for match in self._matches(wanted):
            if match.tokens <= self._held.reusable(prompt):
                break
            try:
                self._restore(match)
            except (LoadError, BackendError, SessionError, MemoryError) as error:
                told.append(_refusal(match.session, str(error) or "there is no memory to read its rows into"))
                self._refuse(match, error)
                continue
            self._library.used_now(match.session)
            ms = 1e3 * (time.perf_counter() - began)
            message = f"{match.tokens} tokens came from saved session {match.session} in {ms:.0f} ms"
            return [*told, SessionResumed(message, session=match.session, tokens=match.tokens, ms=ms)]
        if is_expected and own is not None and not told and 2 * self._held.reusable(prompt) < len(prompt):
            told.append(_refusal(own, self._why_not(own, wanted.prompt)))
        return told

    def save(self, session: str) -> None:
        """Write the rows held now as those of a session whose text is saved.

        Raises SessionError, with the reason, where they may not or cannot be kept, and OSError from the disk; earlier
        rows of the session are then still there, or none are.
        """
        library = self._library
        if not self._held.rows or not library.cap_bytes:
            return
        if not self._engine.capabilities.export:
            raise SessionError(f"the {self._plan.engine} engine cannot give this model's rows out")
        known = self._known_fingerprint()
        with library.lock():
            segments = self._still_saved()
            ranges = self._ranges(segments[-1].stop if segments else 0)
            try:
                index = self._write(session, known, segments, ranges)
            finally:
                Room(library).remove_unused()  # what was there before, or what a failure has left
        self._held.mark()
        self._segments = list(index.segments)
        if index.state.tokens is not None and not segments:
            self._go_on_from(session, index)

    def _write(
        self, session: str, known: Fingerprint, segments: Sequence[Segment], ranges: Sequence[tuple[int, int]]
    ) -> RowsIndex:
        """Export these ranges of rows, beside what is in `segments`, and write the index. Under the library's lock."""
        held, library = self._held, self._library
        state = held.snapshot()
        seen = attention_bytes(state.attention) if state.attention is not None else b""
        self._check_memory(self._export_bytes(ranges), "saving the rows")
        new_bytes = sum(self._most_bytes(stop - start) for start, stop in ranges) + len(seen)
        new_bytes += _index_bytes(state, len(segments) + len(ranges))
        own_bytes = new_bytes + sum(segment.blob.nbytes for segment in segments)
        room = Room(library, spared=[segment.blob for segment in segments])
        if own_bytes > library.cap_bytes or not room.make(new_bytes, own=session):
            raise SessionError(
                f"its rows take {format_bytes(own_bytes)}, and sessions_bytes allows "
                f"{format_bytes(library.cap_bytes)}; allow more, or 0 to keep no rows"
            )
        written = [*segments]
        for start, stop in ranges:
            blob = library.blobs.put(held.export_rows(start, stop))
            written.append(Segment(blob=blob, start=start, stop=stop))
        index = RowsIndex(
            fingerprint=known,
            state=dataclasses.replace(state, attention=None),
            segments=tuple(written),
            attention=library.blobs.put(seen) if seen else None,
            queries=state.attention.recent.shape[2] if state.attention is not None else 0,
        )
        write_index(library.index_path(session), index)
        return index

    def _go_on_from(self, session: str, saved: RowsIndex) -> None:
        """Be what was saved. After an eviction an engine may hold rows in another order than it restores them, and sums
        in another order have other last bits: so this process and one that resumes continue bit by bit alike."""
        whole = Match(
            session=session, index=saved, tokens=len(saved.state.ids), state=saved.state, segments=saved.segments
        )
        try:
            self._restore(whole)
        except (LoadError, BackendError, MemoryError) as error:
            raise SessionError(f"the rows that were just saved cannot be read back: {error}") from error

    def _still_saved(self) -> list[Segment]:
        """The files that hold the first rows as they are now, as far as they are still there."""
        kept: list[Segment] = []
        for segment in self._segments:
            if segment.stop > self._held.unchanged or not self._library.blobs.has(segment.blob):
                break
            kept.append(segment)
        is_complete = bool(kept) and kept[-1].stop == self._held.rows
        if not is_complete and (self._held.rows_differ_by_head or len(kept) >= _MOST_SEGMENTS):
            return []
        return kept

    def _ranges(self, start: int) -> list[tuple[int, int]]:
        """Rows from `start` on, cut into what is exported at once."""
        stop = self._held.rows
        is_whole = self._held.rows_differ_by_head or self._held.rows_are_partial
        step = stop if is_whole else max(1, _SEGMENT_BYTES // self._row_bytes)
        return [(first, min(first + step, stop)) for first in range(start, stop, step)]

    def _matches(self, wanted: Wanted) -> list[Match]:
        """Of sessions whose rows are those of this model, engine and settings."""
        fitting: list[str] = []
        try:
            sessions = self._library.ids()
        except OSError:  # the turn cannot be saved either, which is told with the reason
            return []
        for session in sessions:
            try:
                index = self._library.index(session)
                if index is None or self._refused.get(session) is index:
                    continue
                if index.fingerprint.without_model() == self._quick_fingerprint() and self._is_ours(index):
                    fitting.append(session)
            except (LoadError, OSError):  # nobody asked for this session's rows in particular
                continue
        return matches(self._library, fitting, wanted)

    def _is_ours(self, index: RowsIndex) -> bool:
        return index.fingerprint == self._known_fingerprint()

    def _why_not(self, session: str, prompt: np.ndarray) -> str:
        """Why the rows of this session are of no use for this prompt."""
        if not self._library.cap_bytes:
            return "sessions_bytes is 0, so no rows are kept"
        try:
            index = self._library.index(session)
            if index is None:
                return "none are kept: they were evicted to stay within sessions_bytes, or never saved"
            quick = index.fingerprint.without_model().differences(self._quick_fingerprint())
            differences = quick or index.fingerprint.differences(self._known_fingerprint())
        except (LoadError, OSError) as error:
            return str(error)
        if differences:
            return f"they belong to {differences}"
        saved = index.state.ids
        return f"the text differs from the saved one after {common_tokens(saved, prompt)} of {len(saved)} tokens"

    def _restore(self, match: Match) -> None:
        index, spec, blobs = match.index, self._engine.spec, self._library.blobs
        self._check_memory(2 * max(segment.blob.nbytes for segment in match.segments), "reading the rows")

        def rows() -> Iterator[bytes]:
            for segment in match.segments:
                most = self._most_bytes(segment.stop - segment.start)
                if segment.blob.nbytes > most:
                    raise CorruptArtifact("<rows>", "bytes of a segment", segment.blob.nbytes, f"at most {most}")
                yield blobs.get(segment.blob)

        eviction = self._plan.eviction
        most_queries = get_policy(eviction.policy).queries if eviction is not None else 0
        attention = read_attention(blobs, index, spec, most_queries)
        self._segments = []
        can_rewind = not self._held.rows_are_partial
        self._held.resume(dataclasses.replace(match.state, attention=attention), rows(), can_rewind=can_rewind)
        self._segments = list(match.segments)
        if match.cut is not None:
            self._held.cut(match.cut)

    def _refuse(self, match: Match, error: BaseException) -> None:
        """Do not try these rows again; damaged ones are removed, where the disk lets us."""
        self._refused[match.session] = match.index
        if not isinstance(error, CorruptArtifact):
            return
        try:
            with self._library.lock():
                Room(self._library).evict(match.session)
        except (OSError, SessionError):
            return

    def _quick_fingerprint(self) -> Fingerprint:
        """Without the model's hash."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._plan, self._tokenizer)
        return self._fingerprint.without_model()

    def _known_fingerprint(self) -> Fingerprint:
        """With it. OSError if the model's file cannot be read any more."""
        quick = self._quick_fingerprint()
        if self._fingerprint is None or not self._fingerprint.model:
            self._fingerprint = dataclasses.replace(quick, model=model_hash(self._plan))
        return self._fingerprint

    @property
    def _row_bytes(self) -> int:
        kv = self._engine.kv
        return max(1, kv.nbytes // kv.capacity_tokens)

    def _most_bytes(self, rows: int) -> int:
        """That an engine's export of so many rows can take: the rows, a header with positions, per head if need be."""
        spec = self._engine.spec
        return rows * (self._row_bytes + 32 + 12 * spec.layers * spec.kv_heads) + 64 * spec.layers + (64 << 10)

    def _export_bytes(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Memory that exporting takes beside what is held."""
        if not ranges:
            return 0
        return (self._held.rows + _EXPORT_COPIES * max(stop - start for start, stop in ranges)) * self._row_bytes

    def _check_memory(self, needed_bytes: int, what: str) -> None:
        """Raise SessionError if so much more memory would break the plan's budget."""
        allowed, resident = self._plan.budget_bytes, resident_memory().resident_bytes
        if allowed is not None and resident is not None and resident + needed_bytes > allowed:
            raise SessionError(
                f"{what} takes {format_bytes(needed_bytes)} of memory beside the {format_bytes(resident)} in use, and "
                f"the budget allows {format_bytes(allowed)}"
            )


def _index_bytes(state: HeldState, segments: int) -> int:
    """The most that an index takes on disk."""
    return 8 * len(state.ids) + 128 * segments + 4096


def _refusal(session: str, reason: str) -> SessionRefused:
    message = f"the saved rows of session {session} are not used, its text is read again: {reason}"
    return SessionRefused(message, session=session, reason=reason)
