"""The child process of `libllama`: quantises one file with llama_model_quantize and says why if it cannot.

Run as `python -m wattwise_convert.gguf.libllama_child REQUEST`, a JSON object. Never imported by the parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_PR_SET_PDEATHSIG = 1
_MOST_MESSAGE_LINES = 20


def main(text: str) -> int:
    """0: written; 1: refused, with the reason on standard error."""
    request: dict[str, Any] = json.loads(text)
    _die_with(request["parent"])
    import llama_cpp

    errors: list[str] = []

    @llama_cpp.llama_log_callback
    def log(level: int, message: bytes, _data: Any) -> None:
        if level == _LOG_ERROR and len(errors) < _MOST_MESSAGE_LINES:
            errors.append(message.decode(errors="replace").strip())

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = request["file_type"]
    params.nthread = request["threads"]
    params.max_buf_size = request["slab_bytes"]
    source, destination = os.fsencode(request["source"]), os.fsencode(request["destination"])
    status = llama_cpp.llama_model_quantize(source, destination, ctypes.pointer(params))
    if status:
        sys.stderr.write("; ".join(line for line in errors if line.strip("= ")) or f"status {status}")
        return 1
    return 0


def _die_with(parent: int) -> None:
    """Linux: end when the parent does, so that no orphan goes on writing."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
