"""Measured costs, remembered on disk under what they were measured with.

Two reasons: measuring takes a child process or a dry run, and a figure measured twice differs by a few pages, so that a
plan made a second ago could be refused when it is run. A damaged or unwritable cache only costs the measurement.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

from wattwise import __version__
from wattwise.paths import cache_dir
from wattwise_runtimes.formats.atomic import write_file_atomically

_PACKAGES = ("numpy", "onnxruntime", "llama-cpp-python", "tokenizers", "jinja2")
_MOST_ENTRIES = 2000  # the oldest half goes beyond that

Cost = dict[str, int]  # bytes by name


def remembered(model: Path, question: str, measure: Callable[[], Cost]) -> Cost:
    """The answer to `question` about a model on this installation, measured if it is not known yet."""
    file = cache_dir() / "costs.json"
    key = _key(model, question)
    known = _read(file)
    if key not in known:
        answer = measure()
        known = _read(file)  # somebody else may have written meanwhile
        known[key] = answer
        _write(file, known)
    return known[key]


def _key(model: Path, question: str) -> str:
    parts = [str(model.resolve()), question, *software_versions()]
    for file in sorted(model.iterdir()) if model.is_dir() else [model]:
        stat = file.stat()
        parts.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def software_versions() -> list[str]:
    """Of everything that a measured cost depends on."""
    return [__version__, sys.version, *(f"{name} {_version(name)}" for name in _PACKAGES)]


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _read(path: Path) -> dict[str, Cost]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if _is_cost(v)} if isinstance(known, dict) else {}


def _is_cost(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, int) and v >= 0 for v in value.values())


def _write(path: Path, known: dict[str, Cost]) -> None:
    if len(known) > _MOST_ENTRIES:
        known = dict(list(known.items())[len(known) // 2 :])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(path, json.dumps(known).encode())
    except OSError:  # a read-only or full disk only costs another measurement
        return
