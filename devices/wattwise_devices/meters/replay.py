"""A recorded meter, played back: one JSON object per line with the fields of a Reading, times as they were recorded.

For demonstrations, for tests, and for running one analysis twice. It tells nothing about the machine it is played on,
so its readings are marked estimated. `write_readings` makes such files.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from wattwise_devices.errors import CorruptArtifact
from wattwise_devices.meters.contract import Reading, Scope
from wattwise_devices.meters.described import DescribedMeter
from wattwise_devices.meters.source import finite
from wattwise_devices.system import System

_LONGEST_HOLD = 3.0  # a sample is valid until the next, at the end for so many usual distances
_MOST_BYTES = 256 << 20


class ReplayMeter(DescribedMeter):
    """Starts at the recording's first sample when it is made; None after its end and where it has gaps."""

    def __init__(self, path: Path, system: System) -> None:
        self._readings, self.skipped_lines = _load(path)
        self._system, self._start_s = system, system.clock_s()
        self._times = [reading.time_s - self._readings[0].time_s for reading in self._readings]
        gaps = sorted(b - a for a, b in zip(self._times, self._times[1:], strict=False))
        self._step_s = gaps[len(gaps) // 2] if gaps else 1.0
        first = self._readings[0]
        self._name = f"replay:{first.source}"
        self._scope = first.scope
        self._estimated = True

    @property
    def rate_hz(self) -> float:
        return 1 / self._step_s

    def read(self) -> Reading | None:
        now_s = self._system.clock_s() - self._start_s
        index = bisect.bisect_right(self._times, now_s) - 1
        if index < 0 or now_s - self._times[index] > _LONGEST_HOLD * self._step_s:
            return None
        reading, first = self._readings[index], self._readings[0]
        energy_j = None
        if reading.energy_j is not None and first.energy_j is not None:
            energy_j = reading.energy_j - first.energy_j
        return Reading(
            source=self._name,
            scope=self._scope,
            time_s=self._start_s + self._times[index],
            power_w=reading.power_w,
            energy_j=energy_j,
            estimated=True,
            stale=reading.stale,
        )


def open_replay(path: Path, system: System) -> ReplayMeter:
    """Raises CorruptArtifact if the file has no usable line."""
    return ReplayMeter(path, system)


def write_readings(path: Path, readings: Iterable[Reading]) -> None:
    """One line each."""
    with path.open("w", encoding="utf-8") as stream:
        for reading in readings:
            stream.write(json.dumps(asdict(reading)) + "\n")


def _load(path: Path) -> tuple[list[Reading], int]:
    """Readings of the first line's source in order of time, and how many lines were not usable."""
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise CorruptArtifact(path, "size of the recording", size, f"at most {_MOST_BYTES} bytes")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise CorruptArtifact(path, "recording", error.strerror or str(error), "a readable file") from error
    parsed = [_parse(line) for line in lines if line.strip()]
    readings: list[Reading] = []
    for reading in parsed:
        if reading is None or (readings and reading.source != readings[0].source):
            continue
        if not readings or _follows(readings[-1], reading):
            readings.append(reading)
    if not readings:
        raise CorruptArtifact(path, "usable lines of the recording", 0, "at least one JSON line with a reading")
    return readings, len(parsed) - len(readings)


def _follows(last: Reading, reading: Reading) -> bool:
    falls = last.energy_j is not None and reading.energy_j is not None and reading.energy_j < last.energy_j
    return reading.time_s > last.time_s and not falls


def _parse(line: str) -> Reading | None:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("source"), str)
        or data.get("scope") not in get_args(Scope)
    ):
        return None
    time_s, power_w, energy_j = (_field(data, name) for name in ("time_s", "power_w", "energy_j"))
    if time_s is None or (power_w is None and energy_j is None):
        return None
    return Reading(
        source=data["source"],
        scope=data["scope"],
        time_s=time_s,
        power_w=power_w,
        energy_j=energy_j,
        stale=data.get("stale") is True,
    )


def _field(data: dict[str, Any], name: str) -> float | None:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    value = finite(float(value)) if abs(value) < 1e300 else None
    return value if value is None or value >= 0 or name == "time_s" else None
