"""Budget: what a run may use. The one concept that the API teaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wattwise.units import (
    format_bytes,
    parse_bytes,
    parse_energy,
    parse_milliseconds,
    parse_percent,
    parse_power,
    parse_speed,
    parse_temperature,
)

PARSERS: dict[str, Callable[[Any], float]] = {
    "memory": parse_bytes,
    "power": parse_power,
    "energy": parse_energy,
    "temperature": parse_temperature,
    "battery_floor": parse_percent,
    "ttft_ms": parse_milliseconds,
    "tokens_per_second": parse_speed,
}


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds for one loaded model. None: no bound of one's own. Numbers, or texts with a unit.

    memory: the most resident memory, the whole process included ("3.5GiB"). power: the most on average, idle included,
    at the widest meter that there is ("6 W"). energy: the most per generated token ("0.5 J/token").
    temperature: the hottest ("75 C"). battery_floor: no reply below that charge ("20 %"). ttft_ms: the longest wait for
    the first token ("300 ms"). tokens_per_second: the slowest decoding. A bound that cannot be kept or watched here is
    refused when it is planned, never ignored.
    """

    memory: int | str | None = None
    power: float | str | None = None
    energy: float | str | None = None
    temperature: float | str | None = None
    battery_floor: float | str | None = None
    ttft_ms: float | str | None = None
    tokens_per_second: float | str | None = None

    def __post_init__(self) -> None:
        for name, parse in PARSERS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, parse(value))

    @property
    def memory_bytes(self) -> int | None:
        """The memory bound in bytes."""
        return self.memory if isinstance(self.memory, int) else None

    @property
    def power_w(self) -> float | None:
        """The power bound in watts."""
        return _number(self.power)

    @property
    def energy_j(self) -> float | None:
        """The energy bound in joules per generated token."""
        return _number(self.energy)

    @property
    def temperature_c(self) -> float | None:
        """The temperature bound in degrees Celsius."""
        return _number(self.temperature)

    @property
    def battery_floor_percent(self) -> float | None:
        """The lowest charge of the battery in percent."""
        return _number(self.battery_floor)

    @property
    def longest_ttft_ms(self) -> float | None:
        """The first-token bound in milliseconds."""
        return _number(self.ttft_ms)

    @property
    def least_tokens_per_second(self) -> float | None:
        """The speed bound."""
        return _number(self.tokens_per_second)

    @property
    def is_governed(self) -> bool:
        """Whether a bound has to be watched while a reply is made."""
        return any(bound is not None for bound in (self.power, self.temperature, self.battery_floor))

    def to_json(self) -> dict[str, float | int | None]:
        """Plain numbers with the unit in the name."""
        return {
            "memory_bytes": self.memory_bytes,
            "power_w": self.power_w,
            "energy_j_per_token": self.energy_j,
            "temperature_c": self.temperature_c,
            "battery_floor_percent": self.battery_floor_percent,
            "ttft_ms": self.longest_ttft_ms,
            "tokens_per_second": self.least_tokens_per_second,
        }

    def __str__(self) -> str:
        parts = [
            text
            for text, value in (
                (f"memory {format_bytes(self.memory_bytes)}", self.memory),
                (f"power {self.power_w} W", self.power),
                (f"energy {self.energy_j} J/token", self.energy),
                (f"temperature {self.temperature_c} °C", self.temperature),
                (f"battery not below {self.battery_floor_percent} %", self.battery_floor),
                (f"first token within {self.longest_ttft_ms} ms", self.ttft_ms),
                (f"at least {self.least_tokens_per_second} tok/s", self.tokens_per_second),
            )
            if value is not None
        ]
        return ", ".join(parts) or "no bound"


def _number(value: float | str | None) -> float | None:
    return value if isinstance(value, (int, float)) else None
