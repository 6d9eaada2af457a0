"""What one reply cost. Names are those of llama-server's `timings` where it has one. None: not measured, never 0."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from wattwise.units import format_bytes


@dataclass(slots=True)
class Stats:
    """Counts in tokens, times in milliseconds, sizes in bytes. Kept up to date while a reply streams.

    prompt_n, prompt_ms: prompt tokens computed and how long it took; cache_n: prompt tokens whose rows were reused.
    predicted_n: tokens generated; predicted_ms: from the end of the prompt to the end of the reply.
    ttft_ms: from the request to the first token. load_ms: of the model.
    prompt_j, predicted_j: gross joules of both phases; idle_w: what the meter said while nothing ran; energy: of each
    phase gross and net of idle, with interval, gaps and method. energy_estimated: from a profile, not measured.
    """

    prompt_n: int = 0
    prompt_ms: float = 0.0
    cache_n: int = 0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    ttft_ms: float | None = None
    load_ms: float | None = None
    kv_tokens: int = 0
    kv_bytes: int = 0
    kv_evicted: int = 0
    kv_policy: str = "none"
    kv_agreement: float | None = None
    weights_bytes: int = 0
    mem_peak_bytes: int | None = None
    prompt_j: float | None = None
    predicted_j: float | None = None
    idle_w: float | None = None
    energy_source: str | None = None
    energy_scope: str | None = None
    energy_estimated: bool | None = None
    energy: dict[str, Any] | None = None
    seed: int | None = None

    @property
    def prompt_per_second(self) -> float | None:
        """Prompt tokens computed per second."""
        return 1e3 * self.prompt_n / self.prompt_ms if self.prompt_n and self.prompt_ms > 0 else None

    @property
    def predicted_per_second(self) -> float | None:
        """Decode steps per second. The first token comes out of the prompt's last step, so it is not counted."""
        steps = self.predicted_n - 1
        return 1e3 * steps / self.predicted_ms if steps > 0 and self.predicted_ms > 0 else None

    @property
    def prompt_j_per_token(self) -> float | None:
        """Gross joules per prompt token computed."""
        return self.prompt_j / self.prompt_n if self.prompt_j is not None and self.prompt_n else None

    @property
    def predicted_j_per_token(self) -> float | None:
        """Gross joules per decode step; the first token belongs to the prompt, as in `predicted_per_second`."""
        steps = self.predicted_n - 1
        return self.predicted_j / steps if self.predicted_j is not None and steps > 0 else None

    def to_json(self) -> dict[str, Any]:
        """All fields, both rates and both energies per token."""
        return {
            **dataclasses.asdict(self),
            "prompt_per_second": self.prompt_per_second,
            "predicted_per_second": self.predicted_per_second,
            "prompt_j_per_token": self.prompt_j_per_token,
            "predicted_j_per_token": self.predicted_j_per_token,
        }

    def line(self) -> str:
        """One line for people that fits a narrow terminal: `214 tok · 11.9 tok/s · ttft 0.80 s · kv 312 · 1.2 GiB`."""
        parts = [f"{self.predicted_n} tok"]
        if self.predicted_per_second is not None:
            parts.append(f"{self.predicted_per_second:.1f} tok/s")
        if self.ttft_ms is not None:
            parts.append(f"ttft {self.ttft_ms / 1e3:.2f} s")
        parts.append(f"kv {self.kv_tokens}" + (f" ({self.kv_evicted} evicted)" if self.kv_evicted else ""))
        parts.append(format_bytes(self.mem_peak_bytes))
        parts.append("J n/a" if self.energy_j is None else self._joules())
        return " · ".join(parts)

    def details(self) -> str:
        """All figures in words."""
        reading, speaking = self.prompt_per_second, self.predicted_per_second
        energy = "no meter" if self.energy_j is None else self._joules()
        if self.idle_w is not None:
            energy += f", idle {self.idle_w:.1f} W included"
        lines = [
            f"prompt   {self.prompt_n} tokens read, {self.cache_n} reused, {self.prompt_ms:.0f} ms"
            + (f", {reading:.1f} tok/s" if reading is not None else ""),
            f"reply    {self.predicted_n} tokens, {self.predicted_ms:.0f} ms"
            + (f", {speaking:.1f} tok/s" if speaking is not None else ""),
            f"kv       {self.kv_tokens} tokens, {format_bytes(self.kv_bytes)}"
            + (f", {self.kv_evicted} evicted by {self.kv_policy}" if self.kv_evicted else ""),
            f"memory   {format_bytes(self.mem_peak_bytes)} at the peak, weights {format_bytes(self.weights_bytes)}",
            f"energy   {energy}",
            f"seed     {self.seed}",
        ]
        return "\n".join(lines)

    def _joules(self) -> str:
        """`122 J (0.57 J/tok, rapl:package-0, estimated)`."""
        notes = [self.energy_source or "unknown source"]
        if self.predicted_j_per_token is not None:
            notes.insert(0, f"{self.predicted_j_per_token:.3g} J/tok")
        if self.energy_estimated:
            notes.append("estimated")
        return f"{self.energy_j:.1f} J ({', '.join(notes)})"

    @property
    def energy_j(self) -> float | None:
        """Of prompt and reply together; None if either was not measured."""
        return None if self.prompt_j is None or self.predicted_j is None else self.prompt_j + self.predicted_j
