"""What every meter and every state sensor gives. Unknown is None, never 0, and reading never raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Scope = Literal["board", "battery", "package", "cores", "dram", "gpu", "rail", "process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a meter.

    time_s: monotonic. power_w: now, or over the meter's own averaging time. energy_j: since the meter was opened,
    never falling (wrap-around undone). estimated: computed from a model, not measured. stale: the source has not
    moved for longer than it should.
    """

    source: str
    scope: Scope
    time_s: float
    power_w: float | None = None
    energy_j: float | None = None
    estimated: bool = False
    stale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """What the machine says about itself besides power. temperature_c: of the hottest relevant sensor.

    throttled: reasons given now, such as "under-voltage", "frequency-capped", "thermal". throttled_before: those that
    the firmware remembers since it started. cpu_max_mhz: the highest clock that the kernel allows now.
    """

    time_s: float
    temperature_c: float | None = None
    battery_percent: float | None = None
    on_battery: bool | None = None
    cpu_mhz: float | None = None
    throttled: frozenset[str] = frozenset()
    throttled_before: frozenset[str] = frozenset()
    cpu_max_mhz: float | None = None


@runtime_checkable
class Meter(Protocol):
    """`name`: unique, such as "rapl:package-0". rate_hz: how often new values come. resolution_j: step of the
    counter, if it is one."""

    @property
    def name(self) -> str: ...
    @property
    def scope(self) -> Scope: ...
    @property
    def rate_hz(self) -> float: ...
    @property
    def estimated(self) -> bool: ...
    @property
    def resolution_j(self) -> float | None: ...

    def read(self) -> Reading | None:
        """None if the source is gone or unreadable now; it may come back."""
        ...
