"""Budget: what a run may use. The one concept that the API teaches."""

from __future__ import annotations

from dataclasses import dataclass

from wattwise.units import format_bytes, parse_bytes


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper bounds for one loaded model, the whole process included. None: no bound of one's own.

    memory: bytes of resident memory, as a number or a text such as "3.5GiB".
    """

    memory: int | str | None = None

    def __post_init__(self) -> None:
        if self.memory is not None:
            object.__setattr__(self, "memory", parse_bytes(self.memory))

    @property
    def memory_bytes(self) -> int | None:
        """The memory bound in bytes."""
        return self.memory if isinstance(self.memory, int) else None

    def __str__(self) -> str:
        return f"memory {format_bytes(self.memory_bytes)}" if self.memory_bytes is not None else "no bound"
