"""Report: what was predicted beside what was measured, of the process and of one reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wattwise.planning import Plan
from wattwise.stats import Stats
from wattwise.units import format_bytes
from wattwise_devices.process_memory import ResidentMemory, resident_memory
from wattwise_runtimes.contracts import Engine, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One figure. low and high: the interval of the prediction. None: not predicted, or not measured."""

    name: str
    unit: str
    predicted: float | None
    low: float | None
    high: float | None
    measured: float | None

    @property
    def error(self) -> float | None:
        """(measured - predicted) / measured."""
        if self.predicted is None or not self.measured:
            return None
        return (self.measured - self.predicted) / self.measured

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "predicted": self.predicted,
            "low": self.low,
            "high": self.high,
            "measured": self.measured,
            "error": self.error,
            "unit": self.unit,
        }

    def __str__(self) -> str:
        error = "n/a" if self.error is None else f"{100 * self.error:+.1f} %"
        return f"{self.name} predicted {_show(self.predicted)}, measured {_show(self.measured)} {self.unit} ({error})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """predicted: the plan's ledger. held: the engine's own count. resident: what the system says of this process.

    compared: figures of one reply (first token, speed, energy); empty if there was none.
    """

    predicted: Ledger
    held: Ledger
    resident: ResidentMemory
    budget_bytes: int | None
    where: dict[str, Any]
    compared: tuple[Compared, ...] = ()

    @classmethod
    def of(cls, plan: Plan, engine: Engine, stats: Stats | None = None) -> Report:
        """For a loaded engine, now. stats: of the reply to compare with what is predicted for one of its lengths."""
        return cls(
            predicted=plan.ledger,
            held=engine.nbytes(),
            resident=resident_memory(),
            budget_bytes=plan.budget_bytes,
            where=dict(engine.where()),
            compared=compare(plan, stats) if stats is not None else (),
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
            "compared": {c.name: c.to_json() for c in self.compared},
            "where": self.where,
        }

    def __str__(self) -> str:
        error = "n/a" if self.error is None else f"{100 * self.error:+.1f} %"
        memory = (
            f"memory predicted {format_bytes(self.predicted.total)}, peak measured "
            f"{format_bytes(self.resident.peak_bytes)} ({error}), budget {format_bytes(self.budget_bytes)}"
        )
        told = [str(c) for c in self.compared if c.predicted is not None or c.measured is not None]
        return "\n".join([memory, *told])


def compare(plan: Plan, stats: Stats) -> tuple[Compared, ...]:
    """What is predicted for a reply of exactly these lengths, beside what it took."""
    prediction = None
    if plan.roofline is not None and stats.prompt_n:
        prediction = plan.roofline.reply(stats.prompt_n + stats.cache_n, max(1, stats.predicted_n), stats.cache_n)
    rows = (
        ("ttft_ms", "ms", prediction.ttft_ms if prediction else None, stats.ttft_ms),
        (
            "predicted_per_second",
            "tok/s",
            prediction.tokens_per_second if prediction else None,
            stats.predicted_per_second,
        ),
        (
            "predicted_j_per_token",
            "J",
            prediction.j_per_token if prediction else None,
            stats.predicted_j_per_token,
        ),
    )
    return tuple(
        Compared(
            name=name,
            unit=unit,
            predicted=estimate.value if estimate is not None else None,
            low=estimate.low if estimate is not None else None,
            high=estimate.high if estimate is not None else None,
            measured=measured,
        )
        for name, unit, estimate, measured in rows
    )


def _show(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4g}"
