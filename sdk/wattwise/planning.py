"""Plan: what a load would do and cost, decided before anything is loaded.

The planner tries configurations from the most to the least generous and takes the first whose byte ledger fits the
budget. Its estimates come from the engines (`Backend.estimate`); the runtime's own share is measured.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattwise.budget import Budget
from wattwise.cost_cache import remembered
from wattwise.runtime_cost import runtime_bytes
from wattwise.store import resolve_model
from wattwise.units import format_bytes
from wattwise_devices.errors import BackendUnavailable, MemoryBudgetError, PlanError
from wattwise_devices.limits import memory_limits, usable_cpus
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Artifact, Backend, Capability, Ledger, LoadSpec
from wattwise_runtimes.registry import get_backend

DEFAULT_CONTEXT = 4096
CONTEXT_LADDER = (32768, 16384, 8192, 4096, 2048, 1024, 512, 256)
CHUNK_LADDER = (512, 128, 32)
HEADROOM_SHARE, HEADROOM_BYTES = 0.02, 1 << 20  # kept free above a prediction: heaps do not grow to the byte
KV_LADDER = ("f16", "q8_0")  # chosen without being asked for; coarser types change replies too much


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One decided configuration. `str(plan)` says it in words, `to_json()` as data; `load_spec()` is for the engine.

    context and chunk in tokens; ledger: predicted peak bytes of the whole process; reasons: why it came out so.
    """

    model: str
    artifact: Artifact
    engine: str
    context: int
    kv_type: str
    chunk: int
    threads: int
    threads_batch: int
    ledger: Ledger
    budget_bytes: int | None
    budget_source: str
    reasons: tuple[str, ...] = ()

    def load_spec(self) -> LoadSpec:
        """The part that an engine needs to know."""
        return LoadSpec(
            context=self.context,
            chunk=self.chunk,
            kv_type=self.kv_type,
            threads=self.threads,
            threads_batch=self.threads_batch,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data with stable names."""
        spec = self.artifact.spec
        return {
            "model": self.model,
            "path": str(self.artifact.path),
            "format": self.artifact.format,
            "quant": self.artifact.quant,
            "architecture": spec.architecture,
            "parameters": spec.parameters(),
            "engine": self.engine,
            "device": {"prefill": "cpu", "decode": "cpu"},
            "context": self.context,
            "context_trained": spec.context,
            "kv_type": self.kv_type,
            "chunk": self.chunk,
            "threads": self.threads,
            "threads_batch": self.threads_batch,
            "ledger": self.ledger.to_json(),
            "budget_bytes": self.budget_bytes,
            "budget_source": self.budget_source,
            "fits": True,
            "reasons": list(self.reasons),
        }

    def __str__(self) -> str:
        spec, ledger = self.artifact.spec, self.ledger
        budget = format_bytes(self.budget_bytes)
        lines = [
            f"{self.model}: {spec.architecture}, {spec.parameters() / 1e6:.1f}M parameters, {self.artifact.quant}",
            f"engine   {self.engine} on the CPU, threads: {self.threads} to decode, {self.threads_batch} to read",
            f"context  {self.context} of {spec.context} tokens, KV in {self.kv_type}, read {self.chunk} at a time",
            f"memory   {format_bytes(ledger.total)} of {budget} ({self.budget_source}): weights "
            f"{format_bytes(ledger.weights)}, kv {format_bytes(ledger.kv)}, compute {format_bytes(ledger.compute)}, "
            f"runtime {format_bytes(ledger.runtime)}",
        ]
        return "\n".join(lines + [f"because  {reason}" for reason in self.reasons])


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What the caller fixed; None or "auto" is left to the planner."""

    engine: str = "auto"
    context: int | None = None
    kv_type: str | None = None
    chunk: int | None = None
    threads: int | None = None


def plan(
    model: str | Path = "builtin",
    *,
    budget: Budget | None = None,
    engine: str = "auto",
    context: int | None = None,
    kv_type: str | None = None,
    chunk: int | None = None,
    threads: int | None = None,
    on_progress: Callable[[float], object] | None = None,
) -> Plan:
    """Decide how to run a model inside a budget, loading nothing.

    model: a path, or "builtin". threads: by default WATTWISE_THREADS, else every usable CPU.
    Raises MemoryBudgetError (with what would fit), PlanError for requests that clash, LoadError for a model that
    cannot be opened.
    """
    if threads is None:
        threads = _threads_from_environment()
    wants = Wants(engine=engine, context=context, kv_type=kv_type, chunk=chunk, threads=threads)
    path = resolve_model(model)
    backend, artifact, reasons = _choose_engine(open_artifact(path), wants, on_progress)
    capability = backend.probe()
    if capability is None:  # it was there a moment ago
        raise PlanError(f"the {backend.name} engine has become unavailable")
    _check_wants(wants, artifact, capability)
    allowed, source = _allowed(budget)
    search = _Search(str(model), backend, artifact, capability, wants, allowed, source)
    return search.run(reasons)


def _threads_from_environment() -> int | None:
    text = os.environ.get("WATTWISE_THREADS")
    if not text:
        return None
    if not text.isdigit():
        raise PlanError(f"WATTWISE_THREADS is {text!r}; it must be a count of threads, such as 4")
    return int(text)


def _allowed(budget: Budget | None) -> tuple[int | None, str]:
    if budget is not None and budget.memory_bytes is not None:
        return budget.memory_bytes, "your budget"
    limits = memory_limits()
    if limits.limit_bytes is not None and limits.allowed_bytes != limits.available_bytes:
        return limits.allowed_bytes, "left in this control group"
    return limits.allowed_bytes, "available on this machine"


def _choose_engine(
    artifact: Artifact, wants: Wants, on_progress: Callable[[float], object] | None
) -> tuple[Backend, Artifact, list[str]]:
    """The backend, the artifact in a format that it reads (a GGUF file may be lowered to ONNX), and why."""
    if wants.engine != "auto":
        backend = get_backend(wants.engine)
        reasons = [f"you chose the {backend.name} engine"]
    elif artifact.format == "onnx":
        backend, reasons = get_backend("onnx"), ["an ONNX folder runs on the onnx engine"]
    else:
        try:
            backend, reasons = get_backend("llamacpp"), ["a GGUF file runs on the llamacpp engine"]
        except BackendUnavailable:
            backend, reasons = get_backend("onnx"), []
    capability = backend.probe()
    if capability is not None and artifact.format in capability.formats:
        return backend, artifact, reasons
    if backend.name == "onnx" and artifact.format == "gguf":
        from wattwise.lowering import onnx_folder_for

        lowered = open_artifact(onnx_folder_for(artifact, on_progress))
        why = "the GGUF file was lowered to ONNX once, in the cache"
        if wants.engine == "auto":
            why += "; the llamacpp engine is not installed (make llama)"
        return backend, lowered, [*reasons, why]
    raise PlanError(
        f"the {backend.name} engine cannot run an {artifact.format} model: {artifact.path}. "
        "Leave the engine at auto, or convert the model: wattwise convert",
        clash=(f"engine {backend.name}", f"format {artifact.format}"),
    )


def _check_wants(wants: Wants, artifact: Artifact, capability: Capability) -> None:
    if wants.context is not None and not 16 <= wants.context <= artifact.spec.context:
        raise PlanError(
            f"context {wants.context} is outside 16..{artifact.spec.context}, what {artifact.path.name} was made for",
            clash=(f"context {wants.context}", f"model context {artifact.spec.context}"),
        )
    if wants.kv_type is not None and wants.kv_type not in capability.kv_types:
        raise PlanError(
            f"the {capability.name} engine has no KV type {wants.kv_type!r}; it has {', '.join(capability.kv_types)}",
            clash=(f"kv type {wants.kv_type}", f"engine {capability.name}"),
        )
    for name, value in (("threads", wants.threads), ("chunk", wants.chunk)):
        if value is not None and value < 1:
            raise PlanError(f"{name} must be at least 1, not {value}")


@dataclass(frozen=True, slots=True)
class _Search:
    """One search through the configurations of one artifact on one backend."""

    model: str
    backend: Backend
    artifact: Artifact
    capability: Capability
    wants: Wants
    allowed_bytes: int | None
    source: str
    impossible: list[str] = field(default_factory=list)  # why longer contexts were passed over

    def run(self, reasons: list[str]) -> Plan:
        runtime = runtime_bytes(self.backend.name, self.artifact.path)
        best = next(self._fitting(runtime, self.wants), None)
        if best is None:
            raise self._refusal(runtime)
        return dataclasses.replace(best, reasons=(*reasons, *self._why(best)))

    def _fitting(self, runtime: int, wants: Wants) -> Iterator[Plan]:
        """Configurations that fit, the most generous first."""
        kv_types = self._kv_types(wants)
        for context in self._contexts(wants):
            chunks = sorted({min(c, context) for c in ([wants.chunk] if wants.chunk else CHUNK_LADDER)}, reverse=True)
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

    def _contexts(self, wants: Wants) -> list[int]:
        trained = self.artifact.spec.context
        if wants.context is not None:
            return [wants.context]
        top = min(trained, DEFAULT_CONTEXT)
        window = self.artifact.spec.sliding_window or top  # some engines run a model up to its window only
        return sorted({top, min(window, top), *(c for c in CONTEXT_LADDER if c <= top)}, reverse=True)

    def _kv_types(self, wants: Wants) -> list[str]:
        """The types worth trying, the finest first."""
        if wants.kv_type is not None:
            return [wants.kv_type]
        types = [t for t in KV_LADDER if t in self.capability.kv_types] or list(self.capability.kv_types[:1])
        return types[:1] + [t for t in types[1:] if self._is_possible(t)]

    def _is_possible(self, kv_type: str) -> bool:
        """Whether this model can have its KV cache in this type (block sizes, head sizes)."""
        least = LoadSpec(context=self._smallest_context(), chunk=CHUNK_LADDER[-1], kv_type=kv_type)
        try:
            self._estimate(least)
        except PlanError:
            return False
        return True

    def _smallest_context(self) -> int:
        return min(self.artifact.spec.context, CONTEXT_LADDER[-1])

    def _plan(self, context: int, kv_type: str, chunk: int, runtime: int) -> Plan:
        cpus = usable_cpus()
        made = Plan(
            model=self.model,
            artifact=self.artifact,
            engine=self.backend.name,
            context=context,
            kv_type=kv_type,
            chunk=chunk,
            threads=self.wants.threads or cpus,
            threads_batch=self.wants.threads or cpus,
            ledger=Ledger(),
            budget_bytes=self.allowed_bytes,
            budget_source=self.source,
        )
        ledger = self._estimate(made.load_spec())
        return dataclasses.replace(made, ledger=dataclasses.replace(ledger, runtime=runtime + ledger.runtime))

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
        if best.context < min(self.artifact.spec.context, DEFAULT_CONTEXT) and self.wants.context is None:
            too_large = f"a longer context than {best.context} does not fit {format_bytes(self.allowed_bytes)}"
            why.append(self.impossible[-1] if self.impossible else too_large)
        if best.kv_type != self._kv_types(self.wants)[0]:
            why.append(f"the KV cache is kept in {best.kv_type} so that the context fits")
        if best.chunk < CHUNK_LADDER[0] and best.chunk < best.context and self.wants.chunk is None:
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
