"""The function table of libllama: our own ctypes prototypes on the library inside the llama_cpp package.

Structures come from the package, so they fit the library it was built with. The functions are objects of our own
with plain integer handles: the package's return typed pointers, whose construction costs time in a decode loop.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from typing import Any

from wattwise_devices.errors import BackendUnavailable
from wattwise_runtimes.engines.llamacpp import log

TESTED_VERSION = "0.3.36"  # of llama-cpp-python; its ABI and state format are what the tests have seen
NO_SLOT, ABORTED = 1, 2  # answers of llama_decode that are no failures

_SPINS = "30000"  # 1.3 ms on a 2.6 GHz Zen 4, whose pause instruction is slow; GCC's default is 300,000

_P, _I32, _BOOL, _SIZE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_size_t


class Native:
    """libllama, loaded and initialised, logging to `log.receive`. Get it from `native()`."""

    def __init__(self) -> None:
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # a failed assertion would start a debugger to print one
        _shorten_spinning()
        try:
            import llama_cpp
            from llama_cpp import _ggml
            from llama_cpp import llama_cpp as api
        except (ImportError, OSError, RuntimeError, FileNotFoundError) as error:
            raise BackendUnavailable(
                f"the llamacpp engine cannot be loaded: {error}. Install it with: make llama "
                "(or: pip install 'wattwise[llama]', which needs a C++ compiler)"
            ) from error
        self.version: str = llama_cpp.__version__
        self.api: Any = api
        self.ggml: ctypes.CDLL = _ggml.libggml
        self._lib: ctypes.CDLL = api._lib
        self._log = api.llama_log_callback(log.receive)  # kept alive as long as the library can call it
        log.listen_by(lambda: api.llama_log_set(self._log, ctypes.c_void_p(None)))
        api.llama_backend_init()
        self._declare()

    def _declare(self) -> None:
        f, api = self._function, self.api
        self.model_load = f("llama_model_load_from_file", _P, ctypes.c_char_p, api.llama_model_params)
        self.model_free = f("llama_model_free", None, _P)
        self.context_new = f("llama_init_from_model", _P, _P, api.llama_context_params)
        self.context_free = f("llama_free", None, _P)
        self.decode = f("llama_decode", _I32, _P, api.llama_batch)
        self.logits = f("llama_get_logits", _P, _P)
        self.set_threads = f("llama_set_n_threads", None, _P, _I32, _I32)
        self.threads = f("llama_n_threads", _I32, _P)
        self.threads_batch = f("llama_n_threads_batch", _I32, _P)
        self.cells = f("llama_n_ctx", ctypes.c_uint32, _P)
        self.memory = f("llama_get_memory", _P, _P)
        self.memory_clear = f("llama_memory_clear", None, _P, _BOOL)
        self.seq_rm = f("llama_memory_seq_rm", _BOOL, _P, _I32, _I32, _I32)
        self.seq_cp = f("llama_memory_seq_cp", None, _P, _I32, _I32, _I32, _I32)
        self.seq_add = f("llama_memory_seq_add", None, _P, _I32, _I32, _I32, _I32)
        self.can_shift = f("llama_memory_can_shift", _BOOL, _P)
        self.state_size = f("llama_state_seq_get_size", _SIZE, _P, _I32)
        self.state_get = f("llama_state_seq_get_data", _SIZE, _P, _P, _SIZE, _I32)
        self.state_set = f("llama_state_seq_set_data", _SIZE, _P, _P, _SIZE, _I32)
        self.model_vocab = f("llama_model_get_vocab", _P, _P)
        self.vocab_size = f("llama_vocab_n_tokens", _I32, _P)
        self.model_layers = f("llama_model_n_layer", _I32, _P)
        self.model_window = f("llama_model_n_swa", _I32, _P)
        self.model_rope_type = f("llama_model_rope_type", ctypes.c_int, _P)
        self.model_is_recurrent = f("llama_model_is_recurrent", _BOOL, _P)
        self.model_is_hybrid = f("llama_model_is_hybrid", _BOOL, _P)
        self.model_is_diffusion = f("llama_model_is_diffusion", _BOOL, _P)
        self.model_has_encoder = f("llama_model_has_encoder", _BOOL, _P)
        self.system_info = f("llama_print_system_info", ctypes.c_char_p)

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = self._lib[name]
        function.restype, function.argtypes = result, list(arguments)
        return function


def _shorten_spinning() -> None:
    """Let OpenMP's threads lie down about a millisecond after a step, not eight; read when its library is loaded.

    Within a step threads wait for each other for microseconds: decoding is as fast on a quiet machine, and nearly twice
    as fast where a core is taken. Between steps the spinning would burn a core's power in every rest. Arm's spins are
    short enough as they are.
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if is_x86 and "OMP_WAIT_POLICY" not in os.environ:  # who sets that has decided
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


@functools.cache
def native() -> Native:
    """The one function table of this process. Raises BackendUnavailable where the package is missing or broken."""
    return Native()
