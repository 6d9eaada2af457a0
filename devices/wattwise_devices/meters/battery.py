"""The battery's own gauge: what the whole device draws while nothing else feeds it.

Watts from `power_now`, else current times voltage, else from how the stored energy falls; all batteries together. On
external power the gauge shows charging, not consumption, so there is no reading then. Gauges average inside and
update every second to half a minute: good for long runs, coarse for single replies.
Formats: Documentation/ABI/testing/sysfs-class-power.
"""

from __future__ import annotations

from wattwise_devices.meters.contract import Meter
from wattwise_devices.meters.counter import CounterMeter
from wattwise_devices.meters.power_supply import Supplies, Supply
from wattwise_devices.meters.samples import SampleMeter
from wattwise_devices.meters.source import Opened
from wattwise_devices.profile import Profile
from wattwise_devices.system import System

_RATE_HZ = 0.5  # assumption: common gauges; they do not say
_STANDSTILL_S = 120.0  # a gauge may show the same milliwatts for a minute
_WINDOW_S = 30.0
_FIRST_STEP_J = 36.0  # ten milliwatt-hours, the usual step; replaced by smaller ones once seen


def open_battery(system: System, profile: Profile | None = None) -> Opened:
    """One meter "battery" for all batteries, opened on external power too: the plug may be pulled."""
    supplies = Supplies(system)
    own = supplies.batteries()
    if not own:
        return Opened(reasons=(_why_none(system),))
    meter: Meter
    if any(_tells_power(supply) for supply in own) or any(supply.stored_j() is None for supply in own):
        meter = SampleMeter(
            "battery", "battery", system, lambda: _watts(supplies), rate_hz=_RATE_HZ, standstill_s=_STANDSTILL_S
        )
    else:
        drain = _Drain(supplies)
        meter = CounterMeter(
            "battery", "battery", system, drain.drained_j, resolution_j=drain.step, rate_hz=1 / _WINDOW_S,
            window_s=_WINDOW_S, standstill_s=_STANDSTILL_S,
        )  # fmt: skip
    note = () if _feeds(supplies) else ("on external power: the battery tells nothing about consumption now",)
    return Opened((meter,), note)


def _why_none(system: System) -> str:
    listed = system.glob("/sys/class/power_supply/*")
    if listed and all(system.read_text(path / "type") is None for path in listed):
        return "/sys/class/power_supply cannot be read (Android allows it to the system only)"
    return "no battery in /sys/class/power_supply"


def _tells_power(supply: Supply) -> bool:
    """Whether its gauge has a value for power or current at all, be it 0 while the plug is in."""
    return any(supply.text(file) for file in ("power_now", "current_now", "current_avg"))


def _feeds(supplies: Supplies) -> bool:
    """Whether the batteries are the only source of power now."""
    if supplies.external_online():
        return False
    statuses = [supply.status for supply in supplies.batteries()]
    return "discharging" in statuses or (bool(statuses) and all(status in ("", "unknown") for status in statuses))


def _watts(supplies: Supplies) -> float | None:
    """Sum over those that discharge; None if one of them does not say, for a part is not the total."""
    if not _feeds(supplies):
        return None
    own = supplies.batteries()
    active = [supply for supply in own if supply.status == "discharging"] or own
    watts = [supply.watts() for supply in active]
    known = [value for value in watts if value is not None]
    return sum(known) if known and len(known) == len(watts) else None


class _Drain:
    """Energy taken since the meter was opened, by the difference of what is stored."""

    def __init__(self, supplies: Supplies) -> None:
        self._supplies = supplies
        self._full_j = _sum_j(supplies.batteries()) or 0.0
        self._last_j: float | None = None
        self._step_j = _FIRST_STEP_J

    def step(self) -> float:
        """The smallest step of the gauge seen so far."""
        return self._step_j

    def drained_j(self) -> float | None:
        """Never below 0: a battery that was charged in between starts anew."""
        stored_j = _sum_j(self._supplies.batteries()) if _feeds(self._supplies) else None
        if stored_j is None:
            return None
        self._full_j = max(self._full_j, stored_j)
        if self._last_j is not None and 0.01 < abs(stored_j - self._last_j) < self._step_j:
            self._step_j = abs(stored_j - self._last_j)
        self._last_j = stored_j
        return self._full_j - stored_j


def _sum_j(own: list[Supply]) -> float | None:
    stored = [supply.stored_j() for supply in own]
    known = [value for value in stored if value is not None]
    return sum(known) if known and len(known) == len(stored) else None
