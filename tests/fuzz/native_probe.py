"""Opens files with native libraries in forked children and says how each child ended: a crash is a result, not an end.

Run as a program with the name of a library it reads paths from standard input, one per line, and answers each with one
line: "ok", "refused" (the library returned an error), "signal 6" (aborted), "signal 11", "timeout", ...
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

TIMEOUT_S = 20.0
MEMORY_BYTES = 8 << 30  # of address space, so that a hostile size fails in the child alone
Library = Literal["llama", "onnx", "tokenizers"]


def _llama() -> Callable[[str], bool]:
    """Load a GGUF model, decode four tokens at once and one alone."""
    import llama_cpp as llama

    @llama.llama_log_callback
    def silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        pass

    llama.llama_log_set(silent, ctypes.c_void_p(0))

    def run(path: str) -> bool:
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        model = llama.llama_model_load_from_file(path.encode(), params)
        if not model:
            return False
        wanted = llama.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_threads, wanted.n_threads_batch = 32, 16, 1, 1
        context = llama.llama_init_from_model(model, wanted)
        if not context:
            return False
        handle = llama.llama_model_get_vocab(model)
        vocab = llama.llama_vocab_n_tokens(handle) if handle else 1
        tokens = (ctypes.c_int32 * 4)(0, 1 % vocab, 2 % vocab, vocab - 1)
        for count in (4, 1):
            if llama.llama_decode(context, llama.llama_batch_get_one(tokens, count)) != 0:
                return False
        return bool(silent)  # the callback must outlive the calls

    return run


def _onnx() -> Callable[[str], bool]:
    """Make a session of an ONNX file and run it on ones, first without a past, then with one."""
    import numpy as np
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    types = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}

    def run(path: str) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for new, past in ((2, 0), (1, 2)):
                sizes = {"sequence_length": new, "past_sequence_length": past, "total_sequence_length": new + past}
                feed = {}
                for value in session.get_inputs():
                    shape = [d if isinstance(d, int) else sizes.get(d, 1) for d in value.shape]
                    feed[value.name] = np.ones(shape, types.get(value.type, np.float32))
                if "logits_rows" in feed:
                    feed["logits_rows"][:] = 0
                session.run(None, feed)
        except Exception:
            return False
        return True

    return run


def _tokenizers() -> Callable[[str], bool]:
    """Load a tokenizer.json and encode a text."""
    import tokenizers

    def run(path: str) -> bool:
        try:
            made = tokenizers.Tokenizer.from_file(path)
            made.decode(made.encode("a b ab \u00e9").ids)
        except Exception:
            return False
        return True

    return run


def _serve(library: str) -> None:
    run = {"llama": _llama, "onnx": _onnx, "tokenizers": _tokenizers}[library]()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # an abort prints a backtrace
            os._exit(0 if run(line.rstrip("\n")) else 1)
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


class NativeProbe:
    """A process that answers for many files; use as a context manager."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def __enter__(self) -> NativeProbe:
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), self._library], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        return self

    def ask(self, path: Path) -> str:
        """How opening this file ended."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip() or "probe died"

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


if __name__ == "__main__":
    _serve(sys.argv[1])
