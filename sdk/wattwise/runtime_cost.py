"""What an engine costs before any weight is loaded: interpreter, libraries, tokenizer. Measured, then remembered.

A child process imports what a run imports, initialises the engine, opens the model's tokenizer and template, and
reports its resident memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from wattwise.cost_cache import Cost, remembered
from wattwise_devices.errors import BackendError
from wattwise_devices.process_memory import resident_memory

_TIMEOUT_S = 120


def runtime_bytes(engine: str, model: Path) -> int:
    """Resident bytes of a process that is ready to load `model` with `engine`."""
    return remembered(model, f"runtime of {engine}", lambda: _measure(engine, model))["resident_bytes"]


def _measure(engine: str, model: Path) -> Cost:
    command = [sys.executable, "-m", "wattwise.runtime_cost", engine, str(model)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"the {engine} engine did not start within {_TIMEOUT_S} s to measure its memory") from error
    try:
        return {"resident_bytes": int(json.loads(done.stdout)["resident_bytes"])}
    except (ValueError, KeyError, TypeError) as error:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BackendError(f"the {engine} engine could not be started to measure its memory: {last}") from error


def _child(engine: str, model: Path) -> None:
    import wattwise.model  # what every run imports
    import wattwise.sessions.open_session  # and one that saves its conversation
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
