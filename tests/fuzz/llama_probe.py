"""Loads GGUF files with llama.cpp in forked children and says how each child ended: a crash is a result, not an end.

Run as a program it reads paths from standard input, one per line, and answers each with one line:
"ok", "refused" (llama.cpp returned an error), "signal 6" (aborted), "signal 11", "timeout", ...
"""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 10.0


def _load_and_run(path: str) -> int:
    """In the child: load, tokenize, decode a few tokens. 0: worked, 1: refused with an error."""
    import llama_cpp as llama

    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(path.encode(), params)
    if not model:
        return 1
    wanted = llama.llama_context_default_params()
    wanted.n_ctx, wanted.n_batch, wanted.n_threads, wanted.n_threads_batch = 32, 16, 1, 1
    context = llama.llama_init_from_model(model, wanted)
    if not context:
        return 1
    tokens = (ctypes.c_int32 * 4)(0, 1, 2, 3)
    return 0 if llama.llama_decode(context, llama.llama_batch_get_one(tokens, 4)) == 0 else 1


def _serve() -> None:
    import llama_cpp as llama

    @llama.llama_log_callback
    def silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        pass

    llama.llama_log_set(silent, ctypes.c_void_p(0))
    for line in sys.stdin:
        path = line.rstrip("\n")
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # an abort prints a backtrace
            os._exit(_load_and_run(path))
        print(_wait(pid), flush=True)


def _wait(pid: int) -> str:
    """How the child ended."""
    handle = os.pidfd_open(pid)
    try:
        if not select.select([handle], [], [], TIMEOUT_S)[0]:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return "timeout"
    finally:
        os.close(handle)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return {0: "ok", 1: "refused"}.get(os.WEXITSTATUS(status), f"exit {os.WEXITSTATUS(status)}")


class LlamaProbe:
    """A process that answers for many files; use as a context manager."""

    def __enter__(self) -> LlamaProbe:
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        return self

    def ask(self, path: Path) -> str:
        """How loading and running this file ended."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip() or "probe died"

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


if __name__ == "__main__":
    _serve()
