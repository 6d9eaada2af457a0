"""Plan: one decided configuration, in words and as data, and what the engine needs of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wattwise.budget import Budget
from wattwise.kv.eviction import Eviction
from wattwise.kv.guard import GuardSettings
from wattwise.roofline import Prediction, Roofline
from wattwise.settings import Settings
from wattwise.units import format_bytes
from wattwise_runtimes.contracts import Artifact, Ledger, LoadSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One decided configuration. `str(plan)` says it in words, `to_json()` as data; `load_spec()` is for the engine.

    context and chunk in tokens; ledger: predicted peak bytes of the whole process; reasons: why it came out so.
    prediction: of a reply to a prompt of the length that was planned for, None where speed is not known; roofline
    predicts others. speeds: (threads, tokens decoded per second) for every count whose rates are known. device: of each
    phase. eviction: how the KV cache is kept within its rows, None where it holds everything. guard: what looks at
    evictions. spill_bytes: what evicted rows may take on disk, None: they are forgotten. overflow: what happens to
    a conversation that does not fit. drafter, streamed_bytes: what this version decides is "none".
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
    budget: Budget = field(default_factory=Budget)
    prediction: Prediction | None = None
    roofline: Roofline | None = field(default=None, repr=False)
    settings: Settings | None = field(default=None, repr=False)
    speeds: tuple[tuple[int, float], ...] = ()
    device: tuple[str, str] = ("cpu", "cpu")
    drafter: str = "none"
    eviction: Eviction | None = None
    guard: GuardSettings | None = None
    spill_bytes: int | None = None
    overflow: str = "error"
    streamed_bytes: int = 0

    def load_spec(self) -> LoadSpec:
        """The part that an engine needs to know."""
        return LoadSpec(
            context=self.context,
            chunk=self.chunk,
            kv_type=self.kv_type,
            threads=self.threads,
            threads_batch=self.threads_batch,
            attention_scores=self.eviction is not None and self.eviction.needs_attention,
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
            "device": {"prefill": self.device[0], "decode": self.device[1]},
            "context": self.context,
            "context_trained": spec.context,
            "kv_type": self.kv_type,
            "kv_policy": self.eviction.policy if self.eviction is not None else "none",
            "kv_eviction": self.eviction.to_json() if self.eviction is not None else None,
            "kv_spill_bytes": self.spill_bytes,
            "kv_guard": self.guard.to_json() if self.guard is not None else None,
            "overflow": self.overflow,
            "chunk": self.chunk,
            "threads": self.threads,
            "threads_batch": self.threads_batch,
            "speeds": {str(threads): speed for threads, speed in self.speeds},
            "draft": self.drafter,
            "ledger": self.ledger.to_json(),
            "resident_bytes": self.ledger.total,
            "streamed_bytes": self.streamed_bytes,
            "budget": self.budget.to_json(),
            "budget_bytes": self.budget_bytes,
            "budget_source": self.budget_source,
            "fits": True,
            "prediction": self.prediction.to_json() if self.prediction is not None else None,
            "reasons": list(self.reasons),
        }

    def __str__(self) -> str:
        spec, ledger = self.artifact.spec, self.ledger
        budget = format_bytes(self.budget_bytes)
        kept = f"\neviction {self.eviction}" if self.eviction is not None else ""
        held = f"{self.context} of {spec.context} tokens"
        lines = [
            f"{self.model}: {spec.architecture}, {spec.parameters() / 1e6:.1f}M parameters, {self.artifact.quant}",
            f"engine   {self.engine} on the CPU, threads: {self.threads} to decode, {self.threads_batch} to read",
            f"context  {held}, KV in {self.kv_type}, read {self.chunk} at a time{kept}",
            f"memory   {format_bytes(ledger.total)} of {budget} ({self.budget_source}): weights "
            f"{format_bytes(ledger.weights)}, kv {format_bytes(ledger.kv)}, compute {format_bytes(ledger.compute)}, "
            f"runtime {format_bytes(ledger.runtime)}",
            f"speed    {self._speed()}",
        ]
        if self.prediction is not None and self.prediction.j_per_token is not None:
            joules = self.prediction.j_per_token
            lines.append(
                f"energy   {joules.value:.3g} J per token ({joules.low:.3g} to {joules.high:.3g}; "
                f"{self.prediction.power_w:.1f} W, {self.prediction.power_source})"
            )
        bounds = {name: value for name, value in self.budget.to_json().items() if value is not None}
        if set(bounds) - {"memory_bytes"}:
            lines.append(f"bounds   {self.budget}")
        return "\n".join(lines + [f"because  {reason}" for reason in self.reasons])

    def _speed(self) -> str:
        p = self.prediction
        if p is None:
            return "not predicted"
        return (
            f"{p.tokens_per_second.value:.1f} tok/s ({p.tokens_per_second.low:.1f} to {p.tokens_per_second.high:.1f}), "
            f"first token of a prompt of {p.prompt_tokens} in {p.ttft_ms.value:.0f} ms "
            f"({p.ttft_ms.low:.0f} to {p.ttft_ms.high:.0f})"
        )
