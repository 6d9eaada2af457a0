"""`plan`: from a model and a budget to one configuration, loading nothing.

In turn: settings, what can be watched here, the engine, what fits in memory, threads by the measured speed of this
machine, and whether the bounds on speed and energy are met. Each step is a module of its own beside this one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from wattwise.budget import PARSERS, Budget
from wattwise.kv.eviction import wanted_eviction
from wattwise.measured_rates import RateStore
from wattwise.planning import bounds
from wattwise.planning.memory import MemorySearch, Wants
from wattwise.planning.plan import Plan
from wattwise.planning.speed import Speed
from wattwise.planning.threads import default_threads
from wattwise.prefix import check_can_evict, check_can_spill
from wattwise.settings import Settings, resolve
from wattwise.store import resolve_model
from wattwise_devices.errors import BackendUnavailable, BudgetError, PlanError
from wattwise_devices.limits import memory_limits
from wattwise_devices.machine import Machine, probe_machine
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Artifact, Backend, Capability
from wattwise_runtimes.registry import get_backend

Progress = Callable[[float], object]
_WORTH_ANOTHER_ENGINE = 1.25  # times as fast: the other engine's rounding gives other words


def plan(
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
    chunk: int | None = None,
    threads: int | None = None,
    threads_batch: int | None = None,
    prompt_tokens: int | None = None,
    on_progress: Progress | None = None,
) -> Plan:
    """Decide how to run a model inside a budget, loading nothing.

    model: a path, or "builtin". kv_policy: how to evict from the KV cache, as in "keydiff:512" (see `kv.eviction`).
    kv_guard: look at evictions, as in "0.9" or "0.9:widen" (see `kv.guard`). kv_spill: bytes on disk for messages that
    lose rows, so that they can be brought back. overflow: what to do with a text longer than the context: "error",
    "evict", "shift" or "summarise". threads, threads_batch: to decode and to read the prompt. prompt_tokens: the prompt
    that speed and first-token time are predicted for. What is not given comes from the settings (see `settings`).
    Raises BudgetError (with what would fit), PlanError for requests that clash, LoadError for a model that cannot be
    opened. Measures the speed of this machine where it is not known yet, once, a few seconds, in a child process.
    """
    given = {name: getattr(budget, name) for name in PARSERS} if budget is not None else {}
    machine = probe_machine()
    profile = machine.profile
    settings = resolve(
        {
            "model": str(model) if model is not None else None, "engine": engine, "context": context,
            "kv_type": kv_type, "kv_policy": kv_policy, "kv_guard": kv_guard, "kv_spill": kv_spill,
            "overflow": overflow, "chunk": chunk, "threads": threads, "threads_batch": threads_batch, **given,
        },
        profile=dict(profile.settings) if profile is not None else None,
        profile_name=profile.name if profile is not None else "",
    )  # fmt: skip
    wants = Wants(
        engine=settings["engine"], context=settings["context"], kv_type=settings["kv_type"], chunk=settings["chunk"],
        threads=settings["threads"], threads_batch=settings["threads_batch"] or settings["threads"],
        eviction=wanted_eviction(settings["kv_policy"], settings["overflow"]),
    )  # fmt: skip
    return _Planner(settings, settings.budget(), machine, wants, prompt_tokens).run(on_progress)


@dataclasses.dataclass(frozen=True, slots=True)
class _Planner:
    """One call of `plan`."""

    settings: Settings
    budget: Budget
    machine: Machine
    wants: Wants
    prompt_tokens: int | None

    def run(self, on_progress: Progress | None) -> Plan:
        bounds.check_can_be_watched(self.budget, self.machine)
        artifact = open_artifact(resolve_model(self.settings["model"]))
        backend, artifact, reasons = _choose_engine(artifact, self.wants, on_progress)
        made = self._on(backend, artifact, reasons)
        other = self._other_engine(made, artifact)
        if other is not None and _speed(other) > _WORTH_ANOTHER_ENGINE * _speed(made):
            made = other
        return bounds.check_speed_and_energy(made)

    def _on(self, backend: Backend, artifact: Artifact, reasons: list[str]) -> Plan:
        """The plan for one engine; its bounds on speed are not checked yet."""
        capability = backend.probe()
        if capability is None:  # it was there a moment ago
            raise PlanError(f"the {backend.name} engine has become unavailable")
        _check_wants(self.wants, artifact, capability)
        allowed, source = _allowed(self.settings)
        speed = Speed(
            backend=backend, machine=self.machine, budget=self.budget, prompt_tokens=self.prompt_tokens,
            store=RateStore(self.machine, may_measure=self.settings["measure"] == "auto"),
        )  # fmt: skip
        usual = default_threads(self.machine)
        most = (self.wants.threads or usual, self.wants.threads_batch or usual)
        search = MemorySearch(
            str(self.settings["model"]), backend, artifact, capability, self.wants, allowed, source, most
        )
        made = search.run(reasons)
        self._check_eviction(made, backend)
        made = dataclasses.replace(
            made, budget=self.budget, settings=self.settings, overflow=self.settings["overflow"],
            guard=self.settings["kv_guard"], spill_bytes=self.settings["kv_spill"],
        )  # fmt: skip
        return speed.choose(made, self.wants, search.with_threads)

    def _check_eviction(self, made: Plan, backend: Backend) -> None:
        """Raise PlanError for evictions that this engine cannot do, and for guarding or spilling without any."""
        if made.eviction is None:
            for name in ("kv_guard", "kv_spill"):
                if self.settings[name] is not None:
                    raise PlanError(
                        f"{name} is about evictions, but no KV policy is set; give one, as in --kv keydiff:512",
                        clash=(f"{name} {self.settings[name]}", "no KV policy"),
                    )
            return
        can = backend.capabilities(made.artifact, made.load_spec())
        check_can_evict(can, made.eviction)
        if self.settings["kv_spill"] is not None:
            check_can_spill(can, made.eviction)

    def _other_engine(self, made: Plan, artifact: Artifact) -> Plan | None:
        """The same weights on the ONNX engine, if they were lowered before and nothing is lost by it."""
        if self.wants.engine != "auto" or made.engine != "llamacpp" or made.prediction is None:
            return None
        from wattwise.lowering import existing_onnx_folder

        folder = existing_onnx_folder(artifact)
        if folder is None:
            return None
        try:
            return self._on(get_backend("onnx"), open_artifact(folder), ["the onnx engine is predicted to be faster"])
        except (BudgetError, PlanError, BackendUnavailable):  # it cannot do what is asked for
            return None


def _speed(made: Plan) -> float:
    """By the rates as measured: how the machine feels at this moment must not decide which engine answers."""
    if made.roofline is None or made.prediction is None:
        return 0.0
    usual = dataclasses.replace(made.roofline, speed_now=None, speed_now_batch=None)
    return usual.reply(made.prediction.prompt_tokens, made.prediction.reply_tokens).tokens_per_second.value


def _allowed(settings: Settings) -> tuple[int | None, str]:
    memory = settings.setting("memory")
    if memory.value is not None:
        return memory.value, "your budget" if memory.source == "argument" else memory.source
    limits = memory_limits()
    if limits.limit_bytes is not None and limits.allowed_bytes != limits.available_bytes:
        return limits.allowed_bytes, "left in this control group"
    return limits.allowed_bytes, "available on this machine"


def _choose_engine(
    artifact: Artifact, wants: Wants, on_progress: Progress | None
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
