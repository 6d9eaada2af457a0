"""Report: what was predicted beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wattwise.planning import Plan
from wattwise.units import format_bytes
from wattwise_devices.process_memory import ResidentMemory, resident_memory
from wattwise_runtimes.contracts import Engine, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """predicted: the plan's ledger. held: the engine's own count. resident: what the system says of this process."""

    predicted: Ledger
    held: Ledger
    resident: ResidentMemory
    budget_bytes: int | None
    where: dict[str, Any]

    @classmethod
    def of(cls, plan: Plan, engine: Engine) -> Report:
        """For a loaded engine, now."""
        return cls(
            predicted=plan.ledger,
            held=engine.nbytes(),
            resident=resident_memory(),
            budget_bytes=plan.budget_bytes,
            where=dict(engine.where()),
        )

    @property
    def error(self) -> float | None:
        """(measured peak - predicted) / measured peak; None where the system does not tell the peak."""
        peak = self.resident.peak_bytes
        return (peak - self.predicted.total) / peak if peak else None

    def to_json(self) -> dict[str, Any]:
        """Plain data with stable names."""
        return {
            "predicted": self.predicted.to_json(),
            "held": self.held.to_json(),
            "resident_bytes": self.resident.resident_bytes,
            "peak_bytes": self.resident.peak_bytes,
            "budget_bytes": self.budget_bytes,
            "prediction_error": self.error,
            "where": self.where,
        }

    def __str__(self) -> str:
        error = "n/a" if self.error is None else f"{100 * self.error:+.1f} %"
        return (
            f"memory predicted {format_bytes(self.predicted.total)}, peak measured "
            f"{format_bytes(self.resident.peak_bytes)} ({error}), budget {format_bytes(self.budget_bytes)}"
        )
