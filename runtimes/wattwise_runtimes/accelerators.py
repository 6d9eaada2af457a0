"""Compute devices as the engines' own libraries list them: ggml's backend registry and onnxruntime's provider devices.

Asking loads drivers, and a broken driver can end a process or hang, so each library is asked in a child process with
a time limit; what goes wrong there is a line in `problems`, never an exception. Not here: which device to use.
Plugin providers for onnxruntime that are installed are registered in the child first, as an engine would do it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import import_module, util
from typing import Any

TIMEOUT_S = 20.0  # the first start of a graphics driver may compile its own kernels
_MARK = "wattwise-devices:"  # drivers print to standard output too
_NEEDS = {"ggml": "llama_cpp", "onnxruntime": "onnxruntime"}
_ORT_PLUGINS = ("onnxruntime_ep_webgpu", "onnxruntime_qnn")  # modules with get_library_path()
_KINDS = ("cpu", "gpu", "igpu", "npu", "accel", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """library: "ggml" or "onnxruntime". name: as that library calls it. kind: cpu, gpu, igpu, npu, accel or other.

    Memory in bytes, None where the library does not tell; of a device that shares the machine's memory it is that.
    """

    library: str
    name: str
    description: str
    kind: str
    total_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerators:
    """devices: all that were found, CPUs included. versions: of the libraries that answered, by name.

    problems: libraries that could not be asked, and why; each begins with the library's name.
    """

    devices: tuple[Accelerator, ...]
    problems: tuple[str, ...]
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data under the names of the fields."""
        devices = [asdict(device) for device in self.devices]
        return {"devices": devices, "problems": list(self.problems), "versions": dict(self.versions)}


def find_accelerators(timeout_s: float = TIMEOUT_S, command: tuple[str, ...] | None = None) -> Accelerators:
    """Ask both libraries, side by side. `command`: how a child is started, for tests; the library's name is added."""
    started = command or (sys.executable, "-m", "wattwise_runtimes.accelerators")
    asked = [name for name, module in _NEEDS.items() if command or util.find_spec(module) is not None]
    with ThreadPoolExecutor(max_workers=len(_NEEDS)) as pool:
        answers = list(pool.map(lambda name: _ask(name, started, timeout_s), asked))
    return Accelerators(
        devices=tuple(device for answer in answers for device in answer.devices),
        problems=tuple(problem for answer in answers for problem in answer.problems),
        versions={name: version for answer in answers for name, version in answer.versions.items()},
    )


def _ask(library: str, command: tuple[str, ...], timeout_s: float) -> Accelerators:
    """What one library tells."""
    try:
        done = subprocess.run(
            [*command, library], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return _failed(f"{library} did not list its devices within {timeout_s:g} s; a driver may hang")
    except OSError as error:
        return _failed(f"{library} could not be asked for its devices: {error}")
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    answer = next((line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)), None)
    if answer is None:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
        return _failed(f"{library} ended while it listed its devices ({ended}): {last[:200]}")
    try:
        found = json.loads(answer)
        return Accelerators(
            devices=tuple(_device(library, entry) for entry in found["devices"]),
            problems=tuple(f"{library}: {problem}" for problem in found["problems"]),
            versions={library: str(found["version"])},
        )
    except (ValueError, KeyError, TypeError) as error:
        return _failed(f"{library} gave a list of devices that cannot be read: {error}")


def _failed(problem: str) -> Accelerators:
    return Accelerators(devices=(), problems=(problem,))


def _device(library: str, entry: dict[str, Any]) -> Accelerator:
    kind = str(entry["kind"])
    return Accelerator(
        library=library,
        name=str(entry["name"]),
        description=str(entry["description"]),
        kind=kind if kind in _KINDS else "other",
        total_bytes=int(entry["total_bytes"]) or None,  # 0 means that the library does not know
        free_bytes=int(entry["free_bytes"]) if int(entry["total_bytes"]) else None,
    )


def _ggml_answer() -> dict[str, Any]:
    from wattwise_runtimes.engines.llamacpp.ggml import devices
    from wattwise_runtimes.engines.llamacpp.native import native

    lib = native()
    found = [asdict(device) for device in devices(lib)]
    return {"devices": found, "problems": [], "version": f"llama-cpp-python {lib.version}"}


def _onnxruntime_answer() -> dict[str, Any]:
    import onnxruntime

    problems = [_register(onnxruntime, name) for name in _ORT_PLUGINS if util.find_spec(name) is not None]
    found: list[dict[str, Any]] = []
    for entry in onnxruntime.get_ep_devices():
        device = entry.device
        kind = str(getattr(device.type, "name", device.type)).lower()
        words = [device.vendor or entry.ep_vendor, dict(device.metadata).get("Description", "")]
        found.append(
            {
                "name": entry.ep_name,
                "description": " ".join(word for word in words if word),
                "kind": kind,
                "total_bytes": 0,
                "free_bytes": 0,
            }
        )
    listed = {entry["name"] for entry in found}
    for provider in onnxruntime.get_available_providers():  # built-in ones that have no devices of their own (CUDA)
        if provider not in listed and provider != "AzureExecutionProvider":  # that one calls a web service
            found.append(
                {"name": provider, "description": "built in", "kind": "other", "total_bytes": 0, "free_bytes": 0}
            )
    version = f"onnxruntime {onnxruntime.__version__}"
    return {"devices": found, "problems": [problem for problem in problems if problem], "version": version}


def _register(onnxruntime: Any, module: str) -> str | None:
    """Make a plugin's devices visible; the reason why not, if it fails."""
    try:
        onnxruntime.register_execution_provider_library(module, import_module(module).get_library_path())
    except Exception as error:  # whatever a vendor's library raises is worth one line, not the whole list
        return f"{module} cannot be used: {str(error)[:200]}"
    return None


_ANSWERS: dict[str, Callable[[], dict[str, Any]]] = {"ggml": _ggml_answer, "onnxruntime": _onnxruntime_answer}


def _child(library: str) -> None:
    sys.stdout.write(f"\n{_MARK}{json.dumps(_ANSWERS[library]())}\n")
    sys.stdout.flush()
    os._exit(0)  # drivers that crash while the process ends have already given their answer


if __name__ == "__main__":
    _child(sys.argv[1])
