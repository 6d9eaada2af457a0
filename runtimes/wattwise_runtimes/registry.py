"""Finds the backends: every module or package in `engines/` that has a `BACKEND`. Adding one is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from wattwise_devices.errors import BackendUnavailable
from wattwise_runtimes import engines
from wattwise_runtimes.contracts import Backend

_INSTALL = {
    "llamacpp": "make llama   (or: pip install 'wattwise[llama]', which needs a C++ compiler)",
    "onnx": "pip install onnxruntime",
}


@cache
def backend_names() -> tuple[str, ...]:
    """Names of all backends in the tree, installed here or not."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(engines.__path__) if not m.name.startswith("_")))


def get_backend(name: str) -> Backend:
    """The backend of that name; raises BackendUnavailable (with what to install) if it cannot run here."""
    if name not in backend_names():
        raise BackendUnavailable(f"no engine is called {name!r}; there are: {', '.join(backend_names())}")
    backend: Backend = importlib.import_module(f"{engines.__name__}.{name}").BACKEND
    if backend.probe() is None:
        raise BackendUnavailable(
            f"the {name} engine is not installed here. Install it with: {_INSTALL.get(name, name)}"
        )
    return backend
