"""A short name for "the same machine under the same limits with the same software": the key of measured results.

Everything that changes what a measurement would give is in it; what varies from minute to minute (free memory, load)
is not.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wattwise_devices.machine import Machine

_PACKAGES = ("wattwise", "numpy", "onnxruntime", "llama-cpp-python")
_VERSION = 1  # of the measurements' own method; raise it when they change


def fingerprint(machine: Machine) -> str:
    """24 hexadecimal digits."""
    facts = machine.to_json()
    cpu, memory = facts["cpu"], facts["memory"]
    parts = {
        "method": _VERSION,
        "cpu": {key: cpu[key] for key in ("model_name", "architecture", "cores", "features", "caches")},
        "usable": facts["usable"],
        "quota_cpus": facts["quota_cpus"],
        "memory": [memory["total_bytes"], memory["limit_bytes"]],
        "board": [facts["board"], facts["hypervisor"]],
        "software": [sys.version, platform.release(), *(f"{name} {_version(name)}" for name in _PACKAGES)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"
