"""onnxruntime, as little of it as an engine needs: options, loading, running, errors.

Options are chosen for predictable memory. The arena keeps whatever the largest prompt once needed, and patterns
are remembered for every new length of the mask; without both, decode and prefill measured equally fast.
Threads spin within a run and stop at its end. Without spinning decode loses up to a third of its speed; left to
themselves, the threads spin on for 14 to 20 ms after each run, which burns power in every rest between tokens and
takes the cores from another engine in the same process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wattwise_devices.errors import BackendError, BackendUnavailable, LoadError

LOG_FATAL_ONLY = 4  # errors are raised, they need not be on the terminal as well
PROVIDERS = ["CPUExecutionProvider"]
_IDENTITY = bytes.fromhex(  # an ONNX model of one node: y = x, both float32 [1]
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a"
    "08080112040a02080142040a001011"
)


def onnxruntime() -> Any:
    """The module, imported on first use."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendUnavailable("onnxruntime is not installed. Install it with: pip install onnxruntime") from error
    return ort


def open_session(model: Path | bytes, *, folder: Path, threads: int) -> Any:
    """An InferenceSession over a checked model file, or over the bytes of a rewritten one."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_FATAL_ONLY
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if isinstance(model, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.fspath(folder))
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        session = ort.InferenceSession(source, options, providers=PROVIDERS)
    except Exception as error:  # onnxruntime's own types have no common base but Exception
        raise LoadError(f"onnxruntime could not load {folder}: {first_line(error)}") from error
    if session.get_providers() != PROVIDERS:
        raise LoadError(f"onnxruntime took {session.get_providers()} for {folder}, asked for {PROVIDERS}")
    return session


def run(session: Any, binding: Any, options: Any | None) -> None:
    """One run of what is bound. A failure becomes a BackendError."""
    try:
        session.run_with_iobinding(binding, options)
    except Exception as error:
        raise BackendError(f"onnxruntime failed: {first_line(error)}") from error


def run_feeds(session: Any, outputs: list[str], feeds: dict[str, Any]) -> list[Any]:
    """One run with plain arrays in and out."""
    try:
        return session.run(outputs, feeds)
    except Exception as error:
        raise BackendError(f"onnxruntime failed: {first_line(error)}") from error


def warm_up() -> None:
    """Load the library and run its smallest graph (y = x)."""
    import numpy as np

    session = onnxruntime().InferenceSession(_IDENTITY, providers=PROVIDERS)
    session.run(None, {"x": np.zeros(1, np.float32)})


def first_line(error: Exception) -> str:
    """The part of an onnxruntime message that a person wants to read."""
    text = str(error).strip()
    return text.splitlines()[0][:400] if text else type(error).__name__
