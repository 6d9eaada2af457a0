"""What an engine costs before any weight is loaded: interpreter, libraries, tokenizer. Measured, then remembered.

A child process imports what a run imports, initialises the engine, opens the model's tokenizer and template, and
reports its resident memory. The figure is cached under the versions and the file it was measured with.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from wattwise.paths import cache_dir
from wattwise_devices.errors import BackendError
from wattwise_devices.process_memory import resident_memory

_PACKAGES = ("numpy", "onnxruntime", "llama-cpp-python", "tokenizers", "jinja2")
_TIMEOUT_S = 120


def runtime_bytes(engine: str, model: Path) -> int:
    """Resident bytes of a process that is ready to load `model` with `engine`."""
    cache = cache_dir() / "runtime-cost.json"
    key = _key(engine, model)
    known = _read(cache)
    if key not in known:
        known[key] = _measure(engine, model)
        _write(cache, known)
    return known[key]


def _measure(engine: str, model: Path) -> int:
    command = [sys.executable, "-m", "wattwise.runtime_cost", engine, str(model)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"the {engine} engine did not start within {_TIMEOUT_S} s to measure its memory") from error
    try:
        return int(json.loads(done.stdout)["resident_bytes"])
    except (ValueError, KeyError, TypeError) as error:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"the {engine} engine could not be started to measure its memory: {last}") from error


def _key(engine: str, model: Path) -> str:
    from wattwise import __version__

    versions = [f"{name} {_version(name)}" for name in _PACKAGES]
    anchor = model / "tokenizer.json" if model.is_dir() else model
    stat = anchor.stat() if anchor.exists() else None
    parts = [__version__, sys.version, engine, str(model.resolve()), *versions]
    parts += [str(stat.st_size), str(stat.st_mtime_ns)] if stat else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _read(path: Path) -> dict[str, int]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, int) and v > 0} if isinstance(known, dict) else {}


def _write(path: Path, known: dict[str, int]) -> None:
    from wattwise_runtimes.formats.atomic import write_file_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(path, json.dumps(known).encode())
    except OSError:  # a read-only or full disk only costs a second measurement
        return


def _child(engine: str, model: Path) -> None:
    import wattwise.model  # what every run imports
    from wattwise_runtimes.registry import get_backend

    backend = get_backend(engine)
    later_bytes = backend.warm_up()
    tokenizer = wattwise.model.find_tokenizer(model)
    if tokenizer is not None:
        wattwise.model.chat_template(tokenizer)
        tokenizer.decode(tokenizer.encode("warm"))
    sys.stdout.write(json.dumps({"resident_bytes": (resident_memory().peak_bytes or 0) + later_bytes}))


if __name__ == "__main__":
    _child(sys.argv[1], Path(sys.argv[2]))
