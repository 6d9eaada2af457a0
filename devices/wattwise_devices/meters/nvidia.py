"""NVIDIA graphics cards through NVML (package nvidia-ml-py, optional): the card's energy counter, else its power.

Scope is the card alone. The counter exists from the Volta generation on. Nothing is imported unless the kernel's
driver is there. Source: NVIDIA's NVML API reference, nvmlDeviceGetTotalEnergyConsumption and nvmlDeviceGetPowerUsage.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from wattwise_devices.meters.contract import Meter
from wattwise_devices.meters.counter import CounterMeter
from wattwise_devices.meters.samples import SampleMeter
from wattwise_devices.meters.source import Opened
from wattwise_devices.profile import Profile
from wattwise_devices.system import System

_COUNTER_HZ = 10.0  # assumption: counters are refreshed every 20 to 100 ms, by generation
_POWER_HZ = 1.0  # on current cards the value is an average over one second
_MILLI = 1e-3


def open_nvidia(system: System, profile: Profile | None = None, nvml: Any = None) -> Opened:
    """Meters "nvidia:0", "nvidia:1" and so on. nvml: the module to use, for tests."""
    if system.read_text("/proc/driver/nvidia/version") is None:
        return Opened(reasons=("no NVIDIA driver is loaded",))
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return Opened(reasons=("an NVIDIA driver is loaded; `pip install nvidia-ml-py` lets its power be read",))
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    except Exception as error:  # whatever the library raises: its classes are made at run time
        return Opened(reasons=(f"NVML does not start: {error}",))
    meters: list[Meter] = []
    reasons: list[str] = []
    for index, handle in enumerate(handles):
        meter = _open_card(system, nvml, index, handle)
        if meter is None:
            reasons.append(f"card {index} reports neither energy nor power")
        else:
            meters.append(meter)
    return Opened(tuple(meters), tuple(reasons) if handles else ("NVML finds no card",))


def _open_card(system: System, nvml: Any, index: int, handle: Any) -> Meter | None:
    def energy_j() -> float | None:
        return _scaled(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))

    def watts() -> float | None:
        return _scaled(lambda: nvml.nvmlDeviceGetPowerUsage(handle))

    name = f"nvidia:{index}"
    if energy_j() is not None:
        return CounterMeter(name, "gpu", system, energy_j, resolution_j=_MILLI, rate_hz=_COUNTER_HZ)
    if watts() is not None:
        return SampleMeter(name, "gpu", system, watts, rate_hz=_POWER_HZ)
    return None


def _scaled(read: Callable[[], Any]) -> float | None:
    """NVML counts millijoules and milliwatts; an error of the library is an unknown value."""
    try:
        return float(read()) * _MILLI
    except Exception:  # NVMLError is not known before the import, and a lost card raises it at any time
        return None
