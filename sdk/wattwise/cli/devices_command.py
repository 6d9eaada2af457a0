"""`wattwise devices`: what this machine has, what it lets us use, how fast it is, and what can be metered.

The quick part is read anew each time. Rates are measured once per machine, limits and software, and remembered;
--probe measures them afresh.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattwise.cli import common

if TYPE_CHECKING:
    from wattwise_runtimes.accelerators import Accelerators

HELP = "the machine: cores, memory, limits, storage and memory rates, accelerators, meters"
_LIBRARIES = {"llamacpp": "ggml", "onnx": "onnxruntime"}  # engine -> who lists its devices


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, and where."""
    parser.add_argument("--probe", action="store_true", help="measure memory and storage afresh (about 4 s)")
    parser.add_argument("--rates", action="store_true", help="measure the engines by weight type (about a minute)")
    parser.add_argument(
        "--path", metavar="PATH", help="a model or folder whose storage is looked at (default: where models are kept)"
    )


def run(options: argparse.Namespace) -> int:
    """Look, measure what is not known yet, print."""
    from wattwise.cli.devices_meters import look_at_meters
    from wattwise.cli.devices_rates import look_at_rates, rates_json, rates_text
    from wattwise.cli.devices_text import describe
    from wattwise.paths import cache_dir
    from wattwise_devices.machine import measure_machine, probe_machine
    from wattwise_devices.measured import recall_measured
    from wattwise_runtimes.accelerators import find_accelerators

    place = _existing(Path(options.path) if options.path else cache_dir(), asked=options.path is not None)
    machine = probe_machine()
    accelerators = find_accelerators()
    meters = look_at_meters(machine)
    known = None if options.probe else recall_measured(machine, cache_dir())
    waits = known is None or machine.storage(place).key not in known.storage
    if waits and sys.stderr.isatty():
        print("measuring memory and storage, about 4 s ...", end="\r", file=sys.stderr, flush=True)
    measured = measure_machine(machine, cache_folder=cache_dir(), storage_path=place, afresh=options.probe)
    if waits and sys.stderr.isatty():
        print("\x1b[K", end="", file=sys.stderr, flush=True)
    storage = machine.storage(place, measured)
    engines = _engines(accelerators)
    rates, problems = look_at_rates(machine, measure=options.rates)
    if options.json:
        from dataclasses import asdict

        common.print_json(
            {
                **machine.to_json(),
                "storage": asdict(storage),
                "measured": measured.to_json(),
                "engines": engines,
                "rates": rates_json(rates),
                "accelerators": accelerators.to_json(),
                **meters.to_json(),
            }
        )
    else:
        words = describe(machine, storage, measured, accelerators, engines, meters)
        print("\n".join([*words, *rates_text(rates, problems)]))
    return 0


def _existing(path: Path, *, asked: bool) -> Path:
    """The path itself, or for a folder of ours that is not there yet, the nearest one above it."""
    if asked:
        os.stat(path)  # raises for what does not exist; the user named it
        return path
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _engines(accelerators: Accelerators) -> list[dict[str, Any]]:
    """Every engine in the tree: its version, or what is wrong with it, or how to get it."""
    from wattwise_runtimes.registry import backend_names

    return [{"name": name, **_engine(name, accelerators)} for name in backend_names()]


def _engine(name: str, accelerators: Accelerators) -> dict[str, str | None]:
    """Native libraries have answered from a child process, or not at all; here none is loaded."""
    from wattwise_devices.errors import BackendUnavailable
    from wattwise_runtimes.registry import get_backend

    library = _LIBRARIES.get(name, name)
    problem = next((text for text in accelerators.problems if text.startswith(library)), None)
    if library in accelerators.versions or problem:
        return {"version": accelerators.versions.get(library), "problem": problem}
    try:
        capability = get_backend(name).probe()
    except BackendUnavailable as error:
        return {"version": None, "problem": str(error)}
    return {"version": capability.version if capability else None, "problem": None}
