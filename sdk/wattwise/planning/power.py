"""What the machine draws while a model runs: measured in earlier replies, else from the profile of the device.

A plan's joules per token are these watts times the predicted time. Unknown is None: nothing is guessed from the
processor's name.
"""

from __future__ import annotations

import json
from pathlib import Path

from wattwise.paths import cache_dir
from wattwise.planning.threads import most_threads
from wattwise.roofline import Power
from wattwise_devices.fingerprint import fingerprint
from wattwise_devices.machine import Machine
from wattwise_runtimes.formats.atomic import write_file_atomically

_WEIGHT = 0.3  # of a new measurement in the running mean
_MEASURED_MARGIN, _PROFILE_MARGIN = 0.15, 0.35


def power_of(machine: Machine, engine: str) -> Power | None:
    """Watts by thread count, or None."""
    measured = _history(_file(), fingerprint(machine), engine)
    if measured:
        return Power(watts_by_threads=measured, source="measured in earlier replies", margin=_MEASURED_MARGIN)
    return _from_profile(machine)


def remember_power(machine: Machine, engine: str, threads: int, watts: float) -> None:
    """Keep what a meter said of a reply."""
    file, key = _file(), fingerprint(machine)
    known = _read(file)
    mine = known.setdefault(key, {}).setdefault(engine, {})
    before = mine.get(str(threads))
    mine[str(threads)] = watts if not isinstance(before, float) else (1 - _WEIGHT) * before + _WEIGHT * watts
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(file, json.dumps(known).encode())
    except OSError:  # a full or read-only disk: the next plan knows less
        return


def _file() -> Path:
    return cache_dir() / "power.json"


def _read(file: Path) -> dict[str, dict[str, dict[str, float]]]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _history(file: Path, key: str, engine: str) -> dict[int, float]:
    entries = _read(file).get(key, {}).get(engine, {})
    return {int(n): w for n, w in entries.items() if n.isdigit() and isinstance(w, (int, float)) and w > 0}


def _from_profile(machine: Machine) -> Power | None:
    """Idle watts and those of the busiest physical cores, the fast ones first, as engines' threads fill them."""
    profile = machine.profile
    if profile is None or profile.idle_w is None:
        return None
    usable = set(machine.usable)
    cores = [c for c in machine.cpu.cores if (not usable or c.cpu in usable) and c.smt_sibling_of is None]
    watts = [profile.watts_of(c.kind) for c in cores]
    known = sorted((w for w in watts if w is not None), reverse=True)
    if not known or len(known) < len(watts):
        return None
    known += [0.0] * (most_threads(machine) - len(known))  # second threads of a core add little
    totals = {n: profile.idle_w + sum(known[:n]) for n in range(1, most_threads(machine) + 1)}
    return Power(watts_by_threads=totals, source=f"estimated from profile {profile.name}", margin=_PROFILE_MARGIN)
