"""What fits: configurations of one model on one engine, from the most to the least generous, by their byte ledger.

The first whose ledger fits is taken. Estimates come from the engine (`Backend.estimate`), the runtime's own share is
measured (`runtime_cost`). Speed is none of this module's business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from wattwise.cost_cache import remembered
from wattwise.kv.eviction import Eviction, EvictionRequest, Level, working_bytes
from wattwise.planning.plan import Plan
from wattwise.runtime_cost import runtime_bytes
from wattwise.units import format_bytes
from wattwise_devices.errors import MemoryBudgetError, PlanError
from wattwise_runtimes.contracts import Artifact, Backend, Capability, Ledger, LoadSpec

DEFAULT_CONTEXT = 4096
CONTEXT_LADDER = (32768, 16384, 8192, 4096, 2048, 1024, 512, 256)
CHUNK_LADDER = (512, 128, 32)
HEADROOM_SHARE, HEADROOM_BYTES = 0.02, 1 << 20  # kept free above a prediction: heaps do not grow to the byte
_KEYS_BY_COPY = ("llamacpp",)  # engines that copy all rows out of native memory before they can show keys
KV_LADDER = ("f16", "q8_0")  # chosen without being asked for; coarser types change replies too much


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What the caller fixed; None or "auto" is left to the planner."""

    engine: str = "auto"
    context: int | None = None
    kv_type: str | None = None
    chunk: int | None = None
    threads: int | None = None
    threads_batch: int | None = None
    eviction: EvictionRequest | None = None


@dataclass(frozen=True, slots=True)
class MemorySearch:
    """One search through the configurations of one artifact on one backend. threads: for one token and for many."""

    model: str
    backend: Backend
    artifact: Artifact
    capability: Capability
    wants: Wants
    allowed_bytes: int | None
    source: str
    threads: tuple[int, int]
    impossible: list[str] = field(default_factory=list)  # why longer contexts were passed over

    def run(self, reasons: list[str]) -> Plan:
        runtime = runtime_bytes(self.backend.name, self.artifact.path)
        best = next(self._fitting(runtime, self.wants), None)
        if best is None:
            raise self._refusal(runtime)
        return dataclasses.replace(best, reasons=(*reasons, *self._why(best)))

    def with_threads(self, made: Plan, threads: int, threads_batch: int) -> Plan:
        """The same plan with other thread counts, its ledger made anew (work buffers go by threads)."""
        runtime = runtime_bytes(self.backend.name, self.artifact.path)
        return self._with_ledger(dataclasses.replace(made, threads=threads, threads_batch=threads_batch), runtime)

    def _fitting(self, runtime: int, wants: Wants) -> Iterator[Plan]:
        """Configurations that fit, the most generous first."""
        kv_types = self._kv_types(wants)
        for context in self._contexts(wants):
            chunks = self._chunks(context, wants)
            try:
                smallest = self._plan(context, kv_types[-1], chunks[-1], runtime)
            except PlanError as error:  # the engine cannot run this model with so much context
                if wants.context is not None:
                    raise
                self.impossible.append(str(error))
                continue
            if not self._fits(smallest):
                continue  # its smallest form is too large, so all its forms are
            for kv_type in kv_types:
                for chunk in chunks:
                    made = self._plan(context, kv_type, chunk, runtime)
                    if self._fits(made):
                        yield made

    def _chunks(self, context: int, wants: Wants) -> list[int]:
        """Tokens of a chunk, the most first. With eviction, no more than are read between two of them."""
        eviction = self._eviction(wants, context)
        most = context if eviction is None else eviction.block
        return sorted({min(c, most) for c in ([wants.chunk] if wants.chunk else CHUNK_LADDER)}, reverse=True)

    def _eviction(self, wants: Wants, rows: int) -> Eviction | None:
        """What was asked for, in a cache of so many rows."""
        if wants.eviction is None:
            return None
        if wants.eviction.has_budget:
            return self._bounded(wants)
        return wants.eviction.resolve(context=rows, row_bytes=1, level=self._level())

    def _bounded(self, wants: Wants) -> Eviction:
        """The eviction of a KV budget that was given: it decides how many rows there are."""
        assert wants.eviction is not None
        whole = wants.context or min(self.artifact.spec.context, DEFAULT_CONTEXT)
        found = wants.eviction.resolve(context=whole, row_bytes=self._row_bytes(wants), level=self._level())
        if found.rows > self.artifact.spec.context:
            raise PlanError(
                f"KV policy {wants.eviction} keeps up to {found.rows} tokens, but {self.model} was made "
                f"for {self.artifact.spec.context}. Give a smaller budget, or leave the policy away.",
                clash=(f"KV policy {wants.eviction}", f"model context {self.artifact.spec.context}"),
            )
        return found

    def _row_bytes(self, wants: Wants) -> int:
        """Of one token in the KV cache."""
        tokens = self._smallest_context()
        spec = LoadSpec(context=tokens, chunk=CHUNK_LADDER[-1], kv_type=wants.kv_type or self._usual_kv_types()[0])
        return max(1, self._estimate(spec).kv // tokens)

    def _level(self) -> Level:
        """The finest at which the engine can evict."""
        load = LoadSpec(context=self._smallest_context(), kv_type=self.capability.kv_types[0])
        return "head" if self.backend.capabilities(self.artifact, load).drop == "head" else "token"

    def _contexts(self, wants: Wants) -> list[int]:
        trained = self.artifact.spec.context
        if wants.eviction is not None and wants.eviction.has_budget:
            return [self._bounded(wants).rows]
        if wants.context is not None:
            return [wants.context]
        top = min(trained, DEFAULT_CONTEXT)
        window = self.artifact.spec.sliding_window or top  # some engines run a model up to its window only
        return sorted({top, min(window, top), *(c for c in CONTEXT_LADDER if c <= top)}, reverse=True)

    def _kv_types(self, wants: Wants) -> list[str]:
        """The types worth trying, the finest first."""
        if wants.kv_type is not None:
            return [wants.kv_type]
        types = self._usual_kv_types()
        return types[:1] + [t for t in types[1:] if self._is_possible(t)]

    def _usual_kv_types(self) -> list[str]:
        """Those that are chosen without being asked for, whether or not this model can have them."""
        return [t for t in KV_LADDER if t in self.capability.kv_types] or list(self.capability.kv_types[:1])

    def _is_possible(self, kv_type: str) -> bool:
        """Whether this model can have its KV cache in this type (block sizes, head sizes)."""
        eviction = self._eviction(self.wants, self._smallest_context())
        least = LoadSpec(
            context=self._smallest_context(),
            chunk=CHUNK_LADDER[-1],
            kv_type=kv_type,
            attention_scores=eviction is not None and eviction.needs_attention,
        )
        try:
            self._estimate(least)
        except PlanError:
            return False
        return True

    def _smallest_context(self) -> int:
        return min(self.artifact.spec.context, CONTEXT_LADDER[-1])

    def _plan(self, context: int, kv_type: str, chunk: int, runtime: int) -> Plan:
        made = Plan(
            model=self.model,
            artifact=self.artifact,
            engine=self.backend.name,
            context=context,
            kv_type=kv_type,
            chunk=chunk,
            threads=self.threads[0],
            threads_batch=self.threads[1],
            ledger=Ledger(),
            budget_bytes=self.allowed_bytes,
            budget_source=self.source,
            eviction=_in_chunks(self._eviction(self.wants, context), chunk),
        )
        return self._with_ledger(made, runtime)

    def _with_ledger(self, made: Plan, runtime: int) -> Plan:
        """The plan with the engine's estimate, the runtime's share, and what evicting takes for a moment."""
        ledger = self._estimate(made.load_spec())
        evicting = 0
        if made.eviction is not None:
            copied = ledger.kv if self.backend.name in _KEYS_BY_COPY else 0
            evicting = working_bytes(self.artifact.spec, made.eviction, copied)
        return dataclasses.replace(
            made,
            ledger=dataclasses.replace(ledger, compute=ledger.compute + evicting, runtime=runtime + ledger.runtime),
        )

    def _estimate(self, spec: LoadSpec) -> Ledger:
        """The engine's estimate, the same one every time it is asked for."""
        question = f"{self.backend.name} {spec}"
        return Ledger(
            **remembered(
                self.artifact.path, question, lambda: dataclasses.asdict(self.backend.estimate(self.artifact, spec))
            )
        )

    def _fits(self, made: Plan) -> bool:
        return self.allowed_bytes is None or with_headroom(made.ledger.total) <= self.allowed_bytes

    def _why(self, best: Plan) -> list[str]:
        why = []
        is_chosen = self.wants.context is None and (self.wants.eviction is None or not self.wants.eviction.has_budget)
        if is_chosen and best.context < min(self.artifact.spec.context, DEFAULT_CONTEXT):
            too_large = f"a longer context than {best.context} does not fit {format_bytes(self.allowed_bytes)}"
            why.append(self.impossible[-1] if self.impossible else too_large)
        if best.kv_type != self._kv_types(self.wants)[0]:
            why.append(f"the KV cache is kept in {best.kv_type} so that the context fits")
        if best.chunk < self._chunks(best.context, self.wants)[0]:
            why.append(f"the prompt is read {best.chunk} tokens at a time to save compute memory")
        return why

    def _refusal(self, runtime: int) -> MemoryBudgetError:
        """The error that names what is needed, and what would fit instead."""
        asked = self._plan(
            self._contexts(self.wants)[-1],
            self._kv_types(self.wants)[-1],
            self.wants.chunk or CHUNK_LADDER[-1],
            runtime,
        )
        free = dataclasses.replace(self.wants, context=None, kv_type=None, chunk=None)
        instead = next(self._fitting(runtime, free), None)
        smallest = self._plan(self._contexts(free)[-1], self._kv_types(free)[-1], CHUNK_LADDER[-1], runtime)
        would_fit: list[str] = []
        if instead is not None:
            would_fit.append(
                f"context {instead.context} with KV in {instead.kv_type} ({format_bytes(instead.ledger.total)})"
            )
        would_fit.append(f"--memory {_enough_for(asked.ledger)} for what was asked")
        if smallest.ledger.total < asked.ledger.total:
            would_fit.append(
                f"--memory {_enough_for(smallest.ledger)} with context {smallest.context}, KV in {smallest.kv_type}"
            )
        needed = format_bytes(with_headroom(asked.ledger.total))
        return MemoryBudgetError(
            f"{self.model} on {self.backend.name} needs {needed} with a context of {asked.context} "
            f"({_parts(asked.ledger)}, and 2 % headroom); allowed: {format_bytes(self.allowed_bytes)} ({self.source}). "
            f"Fits: {'; or '.join(would_fit)}.",
            needed=with_headroom(asked.ledger.total),
            allowed=self.allowed_bytes,
            would_fit=would_fit,
        )


def _in_chunks(eviction: Eviction | None, chunk: int) -> Eviction | None:
    """What is read between two evictions is one chunk at most, because engines show the attention of one."""
    return dataclasses.replace(eviction, block=min(eviction.block, chunk)) if eviction is not None else None


def with_headroom(predicted_bytes: int) -> int:
    """What a budget must allow for a prediction to be accepted."""
    return round(predicted_bytes * (1 + HEADROOM_SHARE)) + HEADROOM_BYTES


def _parts(ledger: Ledger) -> str:
    return ", ".join(
        f"{name} {format_bytes(value)}"
        for name, value in (
            ("weights", ledger.weights),
            ("kv", ledger.kv),
            ("compute", ledger.compute),
            ("runtime", ledger.runtime),
        )
    )


def _enough_for(ledger: Ledger) -> str:
    """A budget that one can type and that is accepted."""
    mib = -(-with_headroom(ledger.total) // (1 << 20))
    return f"{mib}MiB"
