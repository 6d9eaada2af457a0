"""k- and i-quants through llama.cpp's own quantiser, in a child process: a crash there is an error here, not an end.

The model is first written densely to a scratch file, checked by our reader, and only then opened by native code. The
child works on slabs of rows, so that its memory stays small whatever the model's size.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from wattwise_convert.checkpoint import Checkpoint
from wattwise_convert.gguf.types import LLAMA_TYPES
from wattwise_convert.progress import Progress
from wattwise_devices.errors import BackendUnavailable, ConvertError

_POLL_S = 0.1
_SLAB_BYTES = 32 << 20  # of rows that the child keeps in memory
_MOST_THREADS = 8


def dense_type(checkpoint: Checkpoint) -> str:
    """The type of the scratch file: the source's own where that is f16 or bf16, else f32, so that nothing is lost."""
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        if len(tensor.shape) == 2:
            sizes[tensor.dtype] += tensor.shape[0] * tensor.shape[1]
    return next(iter(sizes)) if len(sizes) == 1 and next(iter(sizes)) in ("f16", "bf16") else "f32"


def require_libllama(quant: str) -> None:
    """Raise BackendUnavailable where llama-cpp-python is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise BackendUnavailable(
            f"{quant} is written by llama.cpp's quantiser, which is not installed. "
            "Install it: pip install 'wattwise[llama]'; or take q8_0 or q4_0, which need nothing more."
        )


def quantise(dense: Path, path: Path, quant: str, parameters: int, progress: Progress) -> None:
    """Write `path` in the type `quant` from the dense file. parameters: of the model, for the progress."""
    require_libllama(quant)
    wanted = LLAMA_TYPES[quant]
    progress.expect(int(parameters * wanted.bits / 8))
    request = {
        "source": str(dense),
        "destination": str(path),
        "file_type": wanted.file_type,
        "threads": min(_MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2),
        "slab_bytes": _SLAB_BYTES,
        "parent": os.getpid(),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "wattwise_convert.gguf.libllama_child", json.dumps(request)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is ours to handle
    )
    try:
        message = _wait(child, path, progress)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        if child.stderr is not None:
            child.stderr.close()
    if child.returncode:
        raise ConvertError(f"llama.cpp could not quantise to {quant}: {_why(child.returncode, message)}")


def _wait(child: subprocess.Popen[bytes], path: Path, progress: Progress) -> str:
    """Until the child ends, report progress by the size of its file; give what it said. It says at most a few lines."""
    while True:
        try:
            _, said = child.communicate(timeout=_POLL_S)
            return said.decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            progress.set(path.stat().st_size if path.exists() else 0)


def _why(code: int, message: str) -> str:
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        return f"its process was ended by {name}. {message}".strip()
    return message or f"its process ended with code {code}"
