"""All sources of meters in one table, and the order in which their meters are offered.

A new meter is one file with an `open_...` function and one row here. Best first: what covers the whole device or its
processor, measured, before single rails, before estimates, before parts (a graphics card's energy says nothing about
work done on the processor). Within the first: counters before samples, board before battery before package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wattwise_devices.meters.amd import open_amd
from wattwise_devices.meters.battery import open_battery
from wattwise_devices.meters.contract import Meter, Scope
from wattwise_devices.meters.hwmon import open_hwmon
from wattwise_devices.meters.jetson import open_jetson
from wattwise_devices.meters.model import open_model
from wattwise_devices.meters.nvidia import open_nvidia
from wattwise_devices.meters.powermetrics import open_powermetrics
from wattwise_devices.meters.rapl import open_rapl
from wattwise_devices.meters.replay import open_replay
from wattwise_devices.meters.rpi_pmic import open_rpi_pmic
from wattwise_devices.meters.source import Opened, Opener
from wattwise_devices.profile import Profile
from wattwise_devices.system import System

SOURCES: dict[str, Opener] = {
    "rapl": open_rapl,
    "pmic": open_rpi_pmic,
    "jetson": open_jetson,
    "amd": open_amd,
    "hwmon": open_hwmon,
    "powermetrics": open_powermetrics,
    "battery": open_battery,
    "nvidia": open_nvidia,
    "model": open_model,
}
_COUNTS_ABOVE_HZ = 0.2  # a gauge that counts more slowly is no better than samples
_WHOLE: tuple[Scope, ...] = ("board", "battery", "package")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What one source gave: the names of its meters, and why there are no more."""

    source: str
    meters: tuple[str, ...]
    reasons: tuple[str, ...]


def open_meters(system: System, profile: Profile | None = None, *, replay: Path | None = None) -> list[Meter]:
    """All meters that can be read here, best first. Never raises, except for a recording that cannot be played."""
    meters = [meter for _, opened in open_sources(system, profile) for meter in opened.meters]
    ranked = sorted(meters, key=_rank)  # stable: a source's own order is kept among equals
    return ranked if replay is None else [open_replay(replay, system), *ranked]


def diagnose(system: System, profile: Profile | None = None) -> list[Diagnosis]:
    """For every source what it found or why it found nothing, in words for people."""
    return [
        Diagnosis(source=name, meters=tuple(meter.name for meter in opened.meters), reasons=opened.reasons)
        for name, opened in open_sources(system, profile)
    ]


def open_sources(system: System, profile: Profile | None = None) -> Sequence[tuple[str, Opened]]:
    """Every source with what it gave."""
    return [(name, opener(system, profile)) for name, opener in SOURCES.items()]


def covers_whole(meter: Meter) -> bool:
    """Whether a meter's total may stand for the device's or its processor's; a part never may."""
    return meter.scope in (*_WHOLE, "rail", "process")


def best_meter(meters: Sequence[Meter]) -> Meter | None:
    """The first whose total may stand for the whole and that answers now: a battery says nothing while charging."""
    for meter in meters:
        reading = meter.read() if covers_whole(meter) else None
        if reading is not None and not reading.stale:
            return meter
    return None


def _rank(meter: Meter) -> tuple[int, bool, int]:
    if meter.estimated:
        tier = 2
    elif meter.scope in _WHOLE:
        tier = 0
    else:
        tier = 1 if meter.scope == "rail" else 3
    place = _WHOLE.index(meter.scope) if meter.scope in _WHOLE else len(_WHOLE)
    coarse = meter.resolution_j is None or meter.rate_hz < _COUNTS_ABOVE_HZ
    return tier, coarse, place
