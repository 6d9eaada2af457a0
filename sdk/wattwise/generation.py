"""The one decode loop: prompt in, pieces out. Everything that makes a reply goes through here.

It knows nothing of chat: a prompt is ids. It owns no model either: engine, held prefix and tokenizer are handed in.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from wattwise.energy_record import NO_RECORDING, PROMPT, REPLY, Recorded
from wattwise.events import (
    BroughtBack,
    ContextFull,
    Event,
    Evicted,
    QualityLow,
    ReadAgain,
    RowsMoved,
    SpillFailed,
    told_messages,
)
from wattwise.governor.pilot import FREE, Pilot, Watch
from wattwise.kv.spans import Span, by_message, protected_tokens
from wattwise.prefix import Dropped, GuardLook, HeldPrefix
from wattwise.reply import FinishReason, Piece, Reply
from wattwise.sampling import Sampler
from wattwise.stats import Stats
from wattwise_devices.errors import BudgetError, ContextOverflow, Error, GenerationError, PlanError
from wattwise_devices.process_memory import resident_memory
from wattwise_runtimes.contracts import Batch, Engine, ForwardCancelled
from wattwise_runtimes.text.stream import TextStream
from wattwise_runtimes.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One reply to make. max_tokens None: until the model ends it or the context is full.

    at_start: the reply is a text of its own, not the continuation of one (drops a tokenizer's leading space).
    spans: which tokens of the prompt are whose, and which must never be evicted. message: the index of the reply.
    move_rows: rows behind an edit are moved, not read again.
    """

    prompt: Sequence[int]
    sampler: Sampler
    eog_ids: frozenset[int]
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    at_start: bool = False
    spans: Sequence[Span] = field(default=())
    message: int = 0
    move_rows: bool = False


class Generation:
    """Runs one request; iterate for pieces, then read `reply`. `cancel()` may come from any thread."""

    def __init__(
        self,
        engine: Engine,
        held: HeldPrefix,
        tokenizer: Tokenizer,
        request: Request,
        stats: Stats,
        watch: Watch | None = None,
    ) -> None:
        self._engine, self._held, self._request = engine, held, request
        self._protected = protected_tokens(request.spans)
        self._free_messages = [(span.start, span.stop) for span in request.spans if not span.protected]
        self._spill_problem: str | None = None
        self._pilot: Pilot = watch.pilot(self.note) if watch is not None else FREE
        self.on_event: Callable[[Event], None] | None = None
        self.recall: Callable[[Sequence[int], np.ndarray], None] | None = None  # brings saved rows of the prompt in
        self.recording: Recorded = NO_RECORDING
        self._text = TextStream(tokenizer, request.stop, at_start=request.at_start)
        self._cancel = threading.Event()
        self._parts: list[str] = []
        self._flushed = False
        self.stats = stats
        self.ids: list[int] = []
        self.events: list[Event] = []
        self.finish_reason: FinishReason = "cancelled"  # until something else is known

    def cancel(self) -> None:
        """Ask to stop: takes effect within one chunk of the prompt or one token. Idempotent."""
        self._cancel.set()

    def note(self, event: Event) -> None:
        """Keep an event for the reply, and tell `on_event` at once. Also called by the governor's thread."""
        self.events.append(event)
        if self.on_event is not None:
            self.on_event(event)

    def reply(self) -> Reply:
        """The reply so far."""
        return Reply(
            text="".join(self._parts),
            ids=list(self.ids),
            finish_reason=self.finish_reason,
            stats=self.stats,
            events=list(self.events),
        )

    def __iter__(self) -> Iterator[Piece]:
        request_ns = time.perf_counter_ns()
        try:
            with self._pilot, self.recording:
                yield from self._run(request_ns)
        except ForwardCancelled:
            self.finish_reason = "budget" if self._pilot.stopped else "cancelled"
        except (ContextOverflow, BudgetError, PlanError):  # refused, not failed
            raise
        except (Error, MemoryError) as error:
            raise GenerationError(f"the reply stopped after {len(self.ids)} tokens: {error}", self.reply()) from error
        finally:
            self._finish()

    def _run(self, request_ns: int) -> Iterator[Piece]:
        request, stats, engine = self._request, self.stats, self._engine
        prompt = request.prompt
        capacity = engine.kv.capacity_tokens
        is_bounded = self._held.eviction is None
        if is_bounded and len(prompt) >= capacity:
            raise ContextOverflow(prompt_tokens=len(prompt), limit=capacity)
        self._held.check_protected(self._protected)
        if self.recall is not None:
            self.recall(prompt, self._protected)
        stats.cache_n = self._rewind(prompt)
        logits = self._read(prompt[stats.cache_n :])
        prompt_end_ns = time.perf_counter_ns()
        stats.prompt_n = len(prompt) - stats.cache_n
        stats.prompt_ms = (prompt_end_ns - request_ns) / 1e6
        sampler, push, eog_ids, cancelled = request.sampler, self._text.push, request.eog_ids, self._must_end
        self._pilot.begin("decode")
        self.recording.phase(REPLY)
        limit = request.max_tokens if request.max_tokens is not None else capacity
        away_ns = 0  # time that the reader of the pieces took; not ours
        if limit == 0:
            self.finish_reason = "length"
            return
        while not cancelled():
            token = sampler.sample(logits[0])
            sampler.accept(token)
            now_ns = time.perf_counter_ns()
            self.ids.append(token)
            stats.predicted_n += 1
            stats.predicted_ms = (now_ns - prompt_end_ns - away_ns) / 1e6
            if stats.ttft_ms is None:
                stats.ttft_ms = (now_ns - request_ns) / 1e6
            if token in eog_ids:
                self.finish_reason = "stop"
                break
            text = push(token)
            if text:
                self._parts.append(text)
                left_ns = time.perf_counter_ns()
                yield Piece(text, stats)
                reader_ns = time.perf_counter_ns() - left_ns
                away_ns += reader_ns
                self._pilot.away(reader_ns / 1e9)
            if self._text.stopped is not None:
                self.finish_reason = "stop"
                break
            if stats.predicted_n >= limit:
                self.finish_reason = "length"
                break
            if is_bounded and engine.kv.length >= capacity:
                self._context_full(capacity)
                break
            try:
                logits = self._forward([token])
            except ContextOverflow as error:  # an engine that is only right up to an earlier position
                self._context_full(error.limit)
                break
        rest = self._flush()
        if rest:
            yield Piece(rest, stats)

    def _rewind(self, prompt: Sequence[int]) -> int:
        """Back to where the prompt goes on from what is held; how many of its tokens need not be computed."""
        held, protected = self._held, self._protected
        if self._request.move_rows:
            self._move(prompt)
        would = held.reusable(prompt)
        self._bring_back(would)
        gone = held.missing(protected[protected < would])
        start = held.rewind_to(prompt, protected)
        if gone.size:
            messages = tuple(index for index, _ in by_message(self._request.spans, gone, after=self._request.message))
            self.note(
                ReadAgain(
                    f"{told_messages(messages)} had been evicted and must stay now, so {would - start} tokens are read "
                    "again",
                    tokens=len(gone),
                    messages=messages,
                    read_again=would - start,
                )
            )
        return start

    def _bring_back(self, reusable: int) -> None:
        """Protected messages that have lost rows, back from disk where they are there."""
        held = self._held
        for span in self._request.spans:
            lost = held.missing(np.arange(span.start, span.stop)) if span.protected and span.stop <= reusable else ()
            if len(lost) and held.bring_back(span.start, span.stop, self._protected):
                message = f"{told_messages([span.message])} came back: {len(lost)} evicted tokens were on disk"
                self.note(BroughtBack(message, tokens=len(lost), messages=(span.message,)))

    def _move(self, prompt: Sequence[int]) -> None:
        moved = self._held.move_to(prompt)
        if moved is None:
            self.note(
                RowsMoved("too little stands behind the edit to be moved; it is read again", tokens=0, by=0, error=None)
            )
            return
        self.note(
            RowsMoved(
                f"{moved.tokens} tokens behind the edit were moved by {moved.by}, {moved.read} were read; keys are "
                f"{100 * moved.error:.1f} % off right behind it",
                tokens=moved.tokens,
                by=moved.by,
                error=moved.error,
            )
        )

    def _must_end(self) -> bool:
        if self._cancel.is_set():
            return True
        if self._pilot.stopped:
            self.finish_reason = "budget"
            return True
        return False

    def _read(self, tokens: Sequence[int]) -> np.ndarray:
        """The prompt, in pieces where it has to be paced or rows be evicted; logits of its last token."""
        self._pilot.begin("prefill")
        self.recording.phase(PROMPT)
        done = 0
        while (piece := self._held.piece(self._pilot.piece(len(tokens) - done))) < len(tokens) - done:
            self._forward(tokens[done : done + piece], "none")
            done += piece
        return self._forward(tokens[done:])

    def _forward(self, tokens: Sequence[int], logits_of: Literal["last", "none"] = "last") -> np.ndarray:
        self._pilot.before(self._cancel)
        dropped = self._held.make_room(len(tokens), self._protected, self._free_messages)
        if dropped is not None:
            self._tell(dropped)
        try:
            logits = self._engine.forward(Batch(tokens, logits=logits_of), self._must_end)
        except ForwardCancelled as stopped:
            self._held.extend(tokens[: stopped.rows_done])
            raise
        except ContextOverflow:  # refused before anything was computed
            raise
        except BaseException:  # also Ctrl-C inside the engine: what the store holds is no longer certain
            self._held.clear()
            raise
        self._held.extend(tokens)
        self._pilot.after(len(tokens))
        return logits

    def _tell(self, dropped: Dropped) -> None:
        eviction, request = self._held.eviction, self._request
        if eviction is None:
            return
        messages = tuple(by_message(request.spans, dropped.tokens, after=request.message))
        what = f"{len(dropped.tokens)} tokens"
        if eviction.level == "head":
            what = f"{dropped.rows} rows of every head, {what} from all of them"
        of = f" of {told_messages(index for index, _ in messages)}" if messages and request.spans else ""
        self.note(
            Evicted(
                f"{eviction.policy} evicted {what}{of}",
                policy=eviction.policy,
                rows=dropped.rows,
                tokens=len(dropped.tokens),
                messages=messages,
                score=dropped.score,
                kv_tokens=self._engine.kv.length,
            )
        )
        self._tell_look(dropped.look)
        problem = self._held.spill_problem
        if problem is not None and problem != self._spill_problem:
            self._spill_problem = problem
            self.note(SpillFailed(f"evicted rows could not be kept on disk: {problem}", reason=problem))

    def _tell_look(self, look: GuardLook | None) -> None:
        guard = self._held.guard
        if look is None or guard is None or look.agreement >= guard.settings.least:
            return
        then = f"; the KV budget grows to {look.widened_to} tokens" if look.widened_to is not None else ""
        self.note(
            QualityLow(
                f"eviction changes what the model says: {100 * look.agreement:.0f} % of first choices are the same, "
                f"{100 * guard.settings.least:.0f} % were asked for{then}",
                agreement=look.agreement,
                least=guard.settings.least,
                widened_to=look.widened_to,
            )
        )

    def _context_full(self, limit: int) -> None:
        self.finish_reason = "length"
        self.note(ContextFull(f"the context of {limit} tokens is full", limit))

    def _flush(self) -> str:
        """Text held back so far (half a character, a possible stop string); empty the second time."""
        rest = "" if self._flushed else self._text.flush()
        self._flushed = True
        if rest:
            self._parts.append(rest)
        return rest

    def _finish(self) -> None:
        self._flush()
        self.stats.kv_tokens = self._engine.kv.length
        self.stats.kv_bytes = self._engine.kv.nbytes
        self.stats.kv_evicted = self._held.evicted
        if self._held.eviction is not None:
            self.stats.kv_policy = self._held.eviction.policy
        if self._held.guard is not None:
            self.stats.kv_agreement = self._held.guard.agreement
        self.stats.mem_peak_bytes = resident_memory().peak_bytes
