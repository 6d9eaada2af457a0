"""What has to be measured: memory read rate by number of threads, storage read rate; remembered on disk.

Results lie in one JSON file under the machine's fingerprint. A damaged or unwritable file only costs the
measurement. Engines' own rates are measured one layer up, from these and by their own forward.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattwise_devices.bandwidth import measuring_bytes, read_rates, thread_counts
from wattwise_devices.fingerprint import fingerprint
from wattwise_devices.read_rate import ReadRate, measure_read_rate

if TYPE_CHECKING:
    from wattwise_devices.machine import Machine

CACHE_NAME = "machine.json"
_MOST_MACHINES = 20  # limits and packages change; the oldest go
_METHODS = ("direct", "dropped-cache", "uncached", "cached")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """read_bytes_per_s_by_threads: memory. storage: by StorageInfo.key. measured_at_s: Unix time of the memory part."""

    fingerprint: str
    measured_at_s: float
    read_bytes_per_s_by_threads: dict[int, float]
    storage: dict[str, ReadRate] = field(default_factory=dict)

    @property
    def best_read_bytes_per_s(self) -> float | None:
        """The most that any number of threads reached."""
        return max(self.read_bytes_per_s_by_threads.values(), default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain data under the names of the fields; numbers of threads become texts, as JSON wants them."""
        rates = {str(n): rate for n, rate in self.read_bytes_per_s_by_threads.items()}
        storage = {
            key: {"read_bytes_per_s": r.bytes_per_s, "method": r.method, "read_bytes": r.read_bytes}
            for key, r in self.storage.items()
        }
        return {
            "fingerprint": self.fingerprint,
            "measured_at_s": self.measured_at_s,
            "read_bytes_per_s_by_threads": rates,
            "storage": storage,
        }


def measure_machine(
    machine: Machine,
    *,
    cache_folder: Path | None = None,
    storage_path: Path | None = None,
    afresh: bool = False,
    rate_of: Callable[[Path], ReadRate | None] = measure_read_rate,
) -> Measured:
    """Measure, or recall what was measured on this machine before (under `cache_folder`, unless `afresh`).

    storage_path: a file or folder whose storage is to be measured too. Takes about 2 s for the memory, 2 s for storage.
    """
    key = fingerprint(machine)
    file = None if cache_folder is None else cache_folder / CACHE_NAME
    known = None if afresh or file is None else recall_measured(machine, file.parent)
    found = known or Measured(
        fingerprint=key, measured_at_s=time.time(), read_bytes_per_s_by_threads=_memory_rates(machine)
    )
    if storage_path is not None:
        device = machine.storage(storage_path).key
        rate = None if device in found.storage else rate_of(storage_path)
        if rate is not None:
            found = replace(found, storage={**found.storage, device: rate})
    if file is not None and found != known:
        _remember(file, found)
    return found


def recall_measured(machine: Machine, cache_folder: Path) -> Measured | None:
    """What was measured before on this machine, under these limits and with this software; measures nothing."""
    key = fingerprint(machine)
    return _parse(key, _read(cache_folder / CACHE_NAME).get(key))


def _memory_rates(machine: Machine) -> dict[int, float]:
    usable = max(1, math.ceil(machine.usable_cpus))
    total = measuring_bytes(machine.cpu.last_cache_bytes(), machine.memory.allowed_bytes)
    return read_rates(thread_counts(usable), total_bytes=total)


def _parse(key: str, entry: object) -> Measured | None:
    """An entry of the file; None if it is not what we write."""
    try:
        fields = entry if isinstance(entry, dict) else {}
        rates = {int(n): float(rate) for n, rate in fields["read_bytes_per_s_by_threads"].items()}
        storage = {
            str(device): ReadRate(
                bytes_per_s=float(rate["read_bytes_per_s"]), method=rate["method"], read_bytes=int(rate["read_bytes"])
            )
            for device, rate in fields["storage"].items()
        }
        at = float(fields["measured_at_s"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    numbers = [*rates.values(), *(rate.bytes_per_s for rate in storage.values())]
    sound = rates and all(math.isfinite(n) and n > 0 for n in numbers) and all(n > 0 for n in rates)
    if not sound or not math.isfinite(at) or any(rate.method not in _METHODS for rate in storage.values()):
        return None
    return Measured(fingerprint=key, measured_at_s=at, read_bytes_per_s_by_threads=rates, storage=storage)


def _read(file: Path) -> dict[str, Any]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(file: Path, found: Measured) -> None:
    """Add an entry; the file is replaced in one step, and a full or read-only disk only costs another measurement."""
    known = _read(file)
    known.pop(found.fingerprint, None)
    known[found.fingerprint] = found.to_json()
    kept = dict(list(known.items())[-_MOST_MACHINES:])
    partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(kept, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
