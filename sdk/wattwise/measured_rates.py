"""Rates of the engines on this machine: found in the cache, or measured once in a child process.

Kept under the machine (processor, CPUs that may be used, quota), the versions of the software, engine, weight type,
KV type and thread count. The child makes small synthetic models, so that neither its memory nor its threads are part of
the process that plans. What was measured while the machine stuttered is not kept for long.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattwise.cost_cache import software_versions
from wattwise.host_cost import HostCost
from wattwise.paths import cache_dir
from wattwise_devices.errors import Error
from wattwise_devices.limits import memory_limits
from wattwise_devices.machine import Machine
from wattwise_runtimes.formats.atomic import write_file_atomically
from wattwise_runtimes.rates import FOOTPRINTS, EngineRates

_log = logging.getLogger("wattwise")
_METHOD = 7  # of measuring; raise it when what is stored means something else
_TIMEOUT_S = 180
_CHILD_BYTES = 170 << 20  # of a measuring process without its model
_SHAKY_SPREAD, _SHAKY_SHARE, _SHAKY_FOR_S = 0.5, 0.7, 600.0
_HOST = "host"

Request = dict[str, Any]  # engine, types, kv_type, threads, most_bytes
Answer = dict[str, Any]  # rates: [EngineRates as JSON], host: HostCost as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known about an engine here: rates by (weight type, threads), and what our own loop costs."""

    rates: Mapping[tuple[str, int], EngineRates]
    host: HostCost

    def for_threads(self, threads: int) -> dict[str, EngineRates]:
        """By weight type."""
        return {kind: rates for (kind, count), rates in self.rates.items() if count == threads}


@dataclass(slots=True)
class RateStore:
    """may_measure: whether what is unknown is measured (`measure` among the settings). afresh: also what is known.
    problem: why something asked for is not known, in words, after a None."""

    machine: Machine
    may_measure: bool = True
    afresh: bool = False
    file: Path = field(default_factory=lambda: cache_dir() / "rates.json")
    measure: Callable[[Request], Answer] | None = None
    now_s: Callable[[], float] = time.time
    problem: str | None = None

    def known(
        self, engine: str, types: Sequence[str], kv_type: str, threads: Sequence[int], model_bytes: int
    ) -> Known | None:
        """Rates of every type at every thread count, good for a model of that many bytes. None: see `problem`."""
        self.problem = None
        entries = _read(self.file)
        most = _largest_footprint(model_bytes)
        missing = [
            t
            for t in types
            if self.afresh or any(self._find(entries, engine, t, kv_type, n, most) is None for n in threads)
        ]
        if missing or self._host(entries) is None:
            entries = self._measured(entries, engine, missing or list(types[:1]), kv_type, list(threads), most)
        host = self._host(entries)
        found = {(t, n): self._find(entries, engine, t, kv_type, n, 0) for t in types for n in threads}
        if host is None or any(rates is None for rates in found.values()):
            self.problem = self.problem or "the speed of this machine could not be measured"
            return None
        return Known(rates={key: rates for key, rates in found.items() if rates is not None}, host=host)

    def stored(self) -> list[EngineRates]:
        """Everything that is known of this machine and these versions of the software."""
        found = []
        for key, entry in _read(self.file).items():
            try:
                rates = EngineRates.from_json(entry["rates"])
            except (Error, KeyError, TypeError):  # the host's entry, or a damaged one
                continue
            if key == self._key(rates.engine, rates.weight_type, rates.kv_type, rates.threads):
                found.append(rates)
        return found

    def _measured(
        self, entries: dict[str, Any], engine: str, types: list[str], kv_type: str, threads: list[int], most: int
    ) -> dict[str, Any]:
        """The entries with what could be measured in them."""
        if not self.may_measure:
            self.problem = "the speed of this machine has not been measured (measure = never)"
            return entries
        room = _room_bytes()
        if room is not None and room < 3 * FOOTPRINTS[0]:
            self.problem = "too little memory is free to measure the speed of this machine"
            return entries
        request = {
            "engine": engine,
            "types": types,
            "kv_type": kv_type,
            "threads": threads,
            "most_bytes": most if room is None else min(most, max(FOOTPRINTS[0], room // 3)),
        }
        _log.info("measuring how fast this machine runs %s on %s, once (some seconds)", " and ".join(types), engine)
        try:
            answer = (self.measure or _in_child)(request)
            made = [EngineRates.from_json(data) for data in answer["rates"]]
            host = HostCost(**answer["host"])
        except (Error, OSError, subprocess.SubprocessError, ValueError, TypeError, KeyError) as error:
            self.problem = f"the speed of this machine could not be measured: {error}"
            return entries
        entries = _read(self.file)  # somebody else may have written meanwhile
        for rates in made:
            share = rates.speed.cache_mean_gb_s / rates.speed.cache_best_gb_s  # of the cores, that was ours
            is_shaky = rates.spread > _SHAKY_SPREAD or (rates.threads > 1 and share < _SHAKY_SHARE)
            key = self._key(rates.engine, rates.weight_type, rates.kv_type, rates.threads)
            until = self.now_s() + _SHAKY_FOR_S if is_shaky else None
            entries[key] = {"rates": rates.to_json(), "until": until, "tried_bytes": request["most_bytes"]}
        entries[self._key(_HOST)] = dataclasses.asdict(host)
        _write(self.file, entries)
        return entries

    def _find(
        self, entries: Mapping[str, Any], engine: str, weight_type: str, kv_type: str, threads: int, most: int
    ) -> EngineRates | None:
        """A stored entry that is still good and was measured with models as large as `most` bytes."""
        entry = entries.get(self._key(engine, weight_type, kv_type, threads))
        try:
            if entry is None or (entry["until"] is not None and self.now_s() > entry["until"]):
                return None
            room = _room_bytes()
            wanted = most if room is None else min(most, room // 3)
            return None if entry["tried_bytes"] < wanted else EngineRates.from_json(entry["rates"])
        except (Error, KeyError, TypeError):  # damaged: as if it were not there
            return None

    def _host(self, entries: Mapping[str, Any]) -> HostCost | None:
        try:
            return HostCost(**entries[self._key(_HOST)])
        except (KeyError, TypeError):
            return None

    def _key(self, *parts: object) -> str:
        facts = self.machine.to_json()
        cpu = {name: facts["cpu"][name] for name in ("model_name", "architecture", "features")}
        here = [_METHOD, cpu, facts["usable"], facts["quota_cpus"], platform.release(), software_versions(), *parts]
        return hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:24]


def _largest_footprint(model_bytes: int) -> int:
    return next((size for size in FOOTPRINTS if size >= model_bytes), FOOTPRINTS[-1])


def _room_bytes() -> int | None:
    """What a synthetic model may take while it is measured."""
    allowed = memory_limits().allowed_bytes
    return None if allowed is None else allowed - _CHILD_BYTES


def _read(file: Path) -> dict[str, Any]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(file: Path, entries: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(file, json.dumps(entries).encode())
    except OSError:  # a read-only or full disk only costs another measurement
        return


def _in_child(request: Request) -> Answer:
    command = [sys.executable, "-m", "wattwise.measured_rates", json.dumps(request)]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=env)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise OSError(f"the measuring process failed: {last}")
    return json.loads(done.stdout)


def _child(request: Request) -> Answer:
    from wattwise.host_cost import measure_host_cost
    from wattwise_runtimes import synthetic
    from wattwise_runtimes.rates import measure_all
    from wattwise_runtimes.registry import get_backend

    backend = get_backend(request["engine"])
    capability = backend.probe()
    make = synthetic.write_synthetic_gguf
    if capability is not None and "gguf" not in capability.formats:
        from wattwise.lowering import write_synthetic_onnx as make
    made: list[EngineRates] = []
    for weight_type in request["types"]:
        made += measure_all(
            backend,
            weight_type,
            request["threads"],
            kv_type=request["kv_type"],
            make=make,
            most_bytes=request["most_bytes"],
        )
    host = measure_host_cost()
    return {"rates": [rates.to_json() for rates in made], "host": dataclasses.asdict(host)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_child(json.loads(sys.argv[1]))))
