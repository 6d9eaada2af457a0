"""Model: a loaded model that chats. `load` plans first, refuses what does not fit, then opens the engine."""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wattwise.budget import Budget
from wattwise.conversation import Conversation, Message
from wattwise.energy_record import EnergyRecorder
from wattwise.events import Event, TemplateMissing
from wattwise.generation import Generation, Request
from wattwise.governor.pilot import Watch
from wattwise.kv.spans import Span, message_spans
from wattwise.kv.spill import Spill
from wattwise.paths import cache_dir
from wattwise.planning import Plan, plan
from wattwise.prefix import HeldPrefix
from wattwise.prompting import encode_chat
from wattwise.reply import Reply
from wattwise.report import Report
from wattwise.sampling import Sampler, SamplerParams
from wattwise.stats import Stats
from wattwise.store import model_reference
from wattwise.streaming import AsyncStream, Stream
from wattwise_devices.errors import BackendError, LoadError
from wattwise_runtimes.contracts import Batch, Engine
from wattwise_runtimes.formats.gguf import read_gguf
from wattwise_runtimes.registry import get_backend
from wattwise_runtimes.text.gguf_vocab import has_vocabulary
from wattwise_runtimes.text.sources import load_tokenizer
from wattwise_runtimes.text.template import ChatTemplate, default_template
from wattwise_runtimes.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from wattwise.sessions.library import Library
    from wattwise.sessions.rows import ModelRows

_PLAIN_TURN = "\n### "  # how the plain template begins a turn: a model that goes on with the user's part is stopped


def load(
    model: str | Path | None = None,
    *,
    budget: Budget | None = None,
    engine: str | None = None,
    context: int | None = None,
    kv_type: str | None = None,
    kv_policy: str | None = None,
    kv_guard: str | None = None,
    kv_spill: int | str | None = None,
    overflow: str | None = None,
    threads: int | None = None,
    threads_batch: int | None = None,
    on_progress: Callable[[float], bool | None] | None = None,
) -> Model:
    """Plan and load a model. Raises BudgetError before anything is loaded if it does not fit.

    model: a .gguf file, an ONNX folder, or "builtin". context in tokens. on_progress gets 0..1 and may return False
    to stop. The other arguments are as in `wattwise.plan`.
    """
    decided = plan(
        model,
        budget=budget,
        engine=engine,
        context=context,
        kv_type=kv_type,
        kv_policy=kv_policy,
        kv_guard=kv_guard,
        kv_spill=kv_spill,
        overflow=overflow,
        threads=threads,
        threads_batch=threads_batch,
        on_progress=on_progress,
    )
    return load_plan(decided, on_progress)


def load_plan(decided: Plan, on_progress: Callable[[float], bool | None] | None = None) -> Model:
    """Load exactly what a plan says."""
    began = time.perf_counter()
    tokenizer = find_tokenizer(decided.artifact.path)
    engine = get_backend(decided.engine).load(decided.artifact, decided.load_spec(), on_progress)
    try:
        engine.forward(Batch([0]))  # what a first run sets up must not be part of the first reply's wait
        engine.kv.clear()
        load_ms = 1e3 * (time.perf_counter() - began)
        watch = _watch(decided, engine)
    except BaseException:
        engine.close()
        raise
    return Model(decided, engine, tokenizer, load_ms, watch, _recorder(decided))


def _recorder(decided: Plan) -> EnergyRecorder | None:
    """What measures the energy of replies; None where nothing can."""
    from wattwise.planning.power import remember_power
    from wattwise_devices.machine import probe_machine

    machine = probe_machine()

    def remember(watts: float) -> None:
        if decided.budget.is_governed:  # paced, or on other threads: not what the plan's threads draw
            return
        if decided.settings is not None and decided.settings["measure"] != "never":
            remember_power(machine, decided.engine, decided.threads, watts)

    return EnergyRecorder.here(machine, remember)


def _watch(decided: Plan, engine: Engine) -> Watch | None:
    """The governor of a budget that has to be watched. Sensors are looked for only then."""
    if not decided.budget.is_governed:
        return None
    from wattwise.governor.setup import watch_for
    from wattwise_devices.machine import probe_machine

    return watch_for(decided, engine, probe_machine())


def _spill(decided: Plan) -> Spill | None:
    """Where messages go that lose rows; None where they are forgotten."""
    return Spill(cache_dir() / "spill", decided.spill_bytes) if decided.spill_bytes is not None else None


def find_tokenizer(path: Path) -> Tokenizer | None:
    """The model's tokenizer; None for a file that has none by design (random models for benchmarks)."""
    if path.is_dir():
        return load_tokenizer(path) if any(path.glob("tokenizer*")) else None
    return load_tokenizer(path) if has_vocabulary(read_gguf(path).fields) else None


def chat_template(tokenizer: Tokenizer) -> tuple[ChatTemplate, bool]:
    """The model's own chat template, or the plain built-in one; and whether it is its own."""
    vocabulary = tokenizer.vocabulary

    def text(token: int | None) -> str | None:
        return None if token is None else vocabulary.tokens[token]

    if tokenizer.chat_template is None:
        return default_template(text(vocabulary.bos_id), text(vocabulary.eos_id)), False
    template = ChatTemplate(
        tokenizer.chat_template,
        text(vocabulary.bos_id),
        text(vocabulary.eos_id),
        pad_token=text(vocabulary.pad_id),
        unk_token=text(vocabulary.unk_id),
    )
    return template, True


class Keeping(Protocol):
    """What a saved conversation does around a reply, while no other can begin; `note` puts events on the reply."""

    def recall(self, prompt: Sequence[int], protected: np.ndarray, note: Callable[[Event], None]) -> None:
        """Before the prompt is read: bring in saved rows that begin it."""
        ...

    def save(self, reply: Reply, note: Callable[[Event], None]) -> None:
        """After the reply, whatever ended it. Never raises."""
        ...


class Model:
    """A loaded model. One reply at a time; a second caller waits. Close it, or use it as a context manager."""

    def __init__(
        self,
        decided: Plan,
        engine: Engine,
        tokenizer: Tokenizer | None,
        load_ms: float,
        watch: Watch | None = None,
        recorder: EnergyRecorder | None = None,
    ) -> None:
        self.plan = decided
        self.recorder = recorder  # of energy, where a meter exists
        self.watch = watch  # the governor, where the budget has something to watch
        self.engine = engine
        self.load_ms = load_ms
        self._tokenizer = tokenizer
        self.held = HeldPrefix(engine, decided.eviction, decided.guard, _spill(decided))
        self._template, self._own_template = chat_template(tokenizer) if tokenizer else (default_template(), False)
        self._eog_ids = frozenset(engine.spec.eos_ids) | (tokenizer.eog_ids if tokenizer else frozenset())
        self._busy = _OneAtATime()
        self._sessions: tuple[Library, ModelRows] | None = None  # since a saved conversation was asked for
        self._saved: weakref.WeakSet[Conversation] = weakref.WeakSet()

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back. Raises LoadError for a model without a vocabulary."""
        if self._tokenizer is None:
            raise LoadError(
                f"{self.plan.model} has no vocabulary: it can be benchmarked, but neither read nor write text"
            )
        return self._tokenizer

    def chat(self, messages: str | Sequence[Message], **options: Any) -> Reply:
        """One reply, complete. Arguments as in `stream`."""
        return self.stream(messages, **options).run()

    def stream(
        self,
        messages: str | Sequence[Message],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        tools: Sequence[Message] | None = None,
        raw: bool = False,
        pinned: Collection[int] = (),
        move_rows: bool = False,
        sampler: SamplerParams | None = None,
        on_start: Callable[[], None] | None = None,
        on_end: Callable[[Reply], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
        keeping: Keeping | None = None,
        notes: Sequence[Event] = (),
        **sampling: Any,
    ) -> Stream:
        """A reply as it is made; use it in a `with`, whose exit cancels.

        messages: a user's text, or a list of {"role", "content"}. tools: functions that the model may call, in
        OpenAI's shape; its calls are in the reply's `tool_calls`. raw: the text is the prompt as it is, without a chat
        template. pinned: indices of messages that KV eviction must not touch, beside the system prompt and the tools.
        move_rows: after an edit of an earlier message, turn the rows behind it to their new positions instead of
        reading them again: approximate, and the error is in the event (see `kv.moving`). Sampling by keyword
        (temperature, top_k, top_p, min_p, seed, ...; see SamplerParams) or as `sampler`.
        on_start and on_end are called around the work, on_end with the reply, whatever ended it. on_event is called
        as events happen, perhaps from another thread; all of them are on the reply as well. keeping: how a saved
        `Conversation` restores and saves its rows. notes: events that led to this request.
        Raises ContextOverflow, with both counts, for a prompt that does not fit; nothing is ever cut.
        """
        if sampler is not None and sampling:
            raise TypeError(f"give sampling settings in sampler= or by keyword, not both: {', '.join(sampling)}")
        params = sampler if sampler is not None else SamplerParams(**sampling)
        seed = params.seed if params.seed is not None else secrets.randbits(32)
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        prompt = self.prompt_ids(messages, tools=tools, raw=raw)
        plain = not raw and not self._own_template
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        request = Request(
            prompt=prompt,
            sampler=Sampler(params, self.tokenizer, seed=seed, history=prompt),
            eog_ids=self._eog_ids,
            max_tokens=max_tokens,
            stop=(*stops, _PLAIN_TURN) if plain else stops,
            at_start=not raw,
            spans=self._spans(prompt, turns, tools, pinned) if not raw else (),
            message=len(turns),
            move_rows=move_rows,
        )
        stats = Stats(seed=seed, load_ms=self.load_ms, weights_bytes=self.engine.nbytes().weights)
        generation = Generation(self.engine, self.held, self.tokenizer, request, stats, self.watch)
        generation.on_event = on_event
        for event in notes:
            generation.note(event)
        if self.recorder is not None:
            generation.recording = self.recorder.reply(stats)
        if plain:
            generation.note(TemplateMissing("the model has no chat template; a plain one was used"))

        def begun() -> None:
            self._busy.acquire()
            if on_start is not None:
                on_start()

        if keeping is not None:
            generation.recall = lambda prompt, protected: keeping.recall(prompt, protected, generation.note)

        def ended(reply: Reply) -> None:
            try:
                if keeping is not None:
                    keeping.save(reply, generation.note)
            finally:
                self._busy.release()
            if on_end is not None:
                on_end(reply)

        return Stream(
            generation,
            begun,
            ended,
            self.plan,
            has_tools=bool(tools),
            report=lambda stats: Report.of(self.plan, self.engine, stats),
        )

    def astream(self, messages: str | Sequence[Message], **options: Any) -> AsyncStream:
        """`stream` for asyncio; the same stream behind it."""
        return AsyncStream(self.stream(messages, **options))

    def conversation(
        self, system: str | None = None, tools: Sequence[Message] | None = None, *, session: str | None = None
    ) -> Conversation:
        """A conversation over this model; several may take turns.

        session: "new" saves it on disk after every turn; an id (or the beginning of one), or "latest" for this model's
        last one, goes on with a saved one, which brings its own system prompt and tools; None saves nothing.
        Raises SessionError, LoadError or CorruptArtifact for a session that cannot be opened.
        """
        if session is None:
            return Conversation(self, system, tools)
        from wattwise.sessions.open_session import new_session, open_session

        library, rows = self._session_library()
        if session == "new":
            made = Conversation(self, system, tools, session=new_session(library, rows, self.reference))
        elif system is not None or tools is not None:
            raise TypeError("a saved session has its own system prompt and tools; give them with session='new' only")
        else:
            found = library.latest(self.reference) if session == "latest" else library.find(session)
            made = Conversation(self, session=open_session(library, rows, found))
        self._saved.add(made)
        return made

    @property
    def reference(self) -> str:
        """What saved conversations call this model: the name of a shipped one, else its absolute path."""
        return model_reference(self.plan.model)

    def _session_library(self) -> tuple[Library, ModelRows]:
        if self._sessions is None:
            from wattwise.sessions.library import Library
            from wattwise.sessions.rows import ModelRows

            library = Library.here(self.plan.settings)
            self._sessions = library, ModelRows(library, self.held, self.engine, self.plan, self._tokenizer)
        return self._sessions

    def prompt_ids(
        self, messages: str | Sequence[Message], *, tools: Sequence[Message] | None = None, raw: bool = False
    ) -> list[int]:
        """The ids that a request starts from, exactly as the engine will read them."""
        if raw:
            if not isinstance(messages, str) or tools:
                raise TypeError("raw takes the prompt as one text: no messages, and no tools")
            return self.tokenizer.encode(messages, bos=True)
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return encode_chat(self._template, self.tokenizer, turns, tools)

    def _spans(
        self,
        prompt: Sequence[int],
        turns: Sequence[Message],
        tools: Sequence[Message] | None,
        pinned: Collection[int],
    ) -> list[Span]:
        """Whose each token is; looked up only where tokens may be evicted."""
        if self.held.eviction is None:
            return []

        def encode(part: Sequence[Mapping[str, Any]]) -> list[int]:
            return encode_chat(self._template, self.tokenizer, part, tools, answer=False)

        return message_spans(prompt, turns, encode, frozenset(pinned))

    def forget(self) -> None:
        """Empty the KV cache; the next prompt is read from its beginning."""
        self.held.clear()

    def report(self) -> Report:
        """Predicted beside measured, for this process and this moment."""
        return Report.of(self.plan, self.engine)

    def close(self) -> None:
        """Close saved conversations, and give the engine's memory back. Idempotent."""
        for conversation in list(self._saved):
            conversation.close()
        self.held.close()
        self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _OneAtATime:
    """A lock that makes other threads wait but tells the same thread that it would wait for itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def acquire(self) -> None:
        if self._owner == threading.get_ident() and self._lock.locked():
            raise BackendError("this model is in the middle of another reply; finish or close that stream first")
        self._lock.acquire()
        self._owner = threading.get_ident()

    def release(self) -> None:
        self._owner = None
        if self._lock.locked():
            self._lock.release()
