"""The words of `wattwise devices`: one labelled paragraph per part of the machine, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from wattwise.cli.devices_meters import MeterLook
from wattwise.units import format_bytes
from wattwise_devices.kernel_text import format_cpu_list
from wattwise_devices.machine import Machine, Measured
from wattwise_devices.memory_info import MemoryInfo
from wattwise_devices.profile import Profile
from wattwise_devices.storage import StorageInfo
from wattwise_devices.topology import CpuTopology
from wattwise_runtimes.accelerators import Accelerator, Accelerators

_LABEL, _WIDTH = 13, 80
_PROCESSORS = ("CPU", "CPUExecutionProvider")  # as ggml and onnxruntime call it
_METHODS = {
    "direct": "direct I/O", "dropped-cache": "after dropping its cache", "uncached": "uncached",
    "cached": "CACHED, an upper bound",
}  # fmt: skip


def describe(
    machine: Machine,
    storage: StorageInfo,
    measured: Measured,
    accelerators: Accelerators,
    engines: list[dict[str, Any]],
    meters: MeterLook,
) -> list[str]:
    """All lines."""
    cpu = machine.cpu
    parts: list[tuple[str, Iterable[str]]] = [
        ("machine", _machine(machine)),
        (
            "processor",
            [_joined([cpu.model_name or "unknown processor", cpu.architecture], ", "), " ".join(cpu.features)],
        ),
        ("cores", _cores(cpu)),
        ("usable", _usable(machine)),
        ("caches", [_caches(cpu)]),
        ("memory", _memory(machine.memory)),
        ("", [_bandwidth(measured)]),
        ("storage", _storage(storage)),
        ("accelerators", _accelerators(accelerators)),
        ("engines", [_engine(engine) for engine in engines]),
        ("meters", meters.words()),
        ("state", meters.state_words()),
    ]
    return [line for label, texts in parts for line in _paragraph(label, texts)]


def _paragraph(label: str, texts: Iterable[str]) -> list[str]:
    lines = [line for text in texts if text for line in textwrap.wrap(text, _WIDTH - _LABEL, break_on_hyphens=False)]
    return [(label if number == 0 else "").ljust(_LABEL) + line for number, line in enumerate(lines)]


def _machine(machine: Machine) -> list[str]:
    name = machine.board or "unnamed machine"
    guest = f"virtual ({machine.hypervisor})" if machine.hypervisor not in (None, "unknown") else "virtual"
    first = _joined(
        [name, None if machine.platform == "linux" else machine.platform, guest if machine.hypervisor else None]
    )
    if machine.profile_error:
        return [first, f"profile: {machine.profile_error}"]
    return [first, *(_profile(machine.profile) if machine.profile else [])]


def _profile(profile: Profile) -> list[str]:
    watts = _joined([f"{value:g} W per busy {kind} core" for kind, value in profile.busy_core_w.items()])
    idle = None if profile.idle_w is None else f"{profile.idle_w:g} W idle"
    limits = _joined([_degrees("throttles at", profile.throttle_c), _degrees("stops at", profile.stop_c)])
    guessed = f"estimates: {', '.join(profile.estimated)}" if profile.estimated else ""
    return [f"profile {profile.name}: {_joined([idle, watts, limits])}", guessed]


def _degrees(words: str, value: float | None) -> str | None:
    return None if value is None else f"{words} {value:g} °C"


def _cores(cpu: CpuTopology) -> list[str]:
    if not cpu.cores:
        return ["unknown"]
    physical = Counter(core.kind for core in cpu.physical())
    words = {kind: f"{n} {kind} core{'s' * (n > 1)}" for kind, n in physical.items()}
    if len(words) == 1:
        n = len(cpu.physical())
        first = f"{n} core{'s' * (n > 1)}, all of one kind"
    else:
        first = " + ".join(words.values())
    if len(cpu.cores) > len(cpu.physical()):
        first += f", {len(cpu.cores)} threads (SMT)"
    each = [_kind_line(cpu, kind) for kind in physical] if len(words) > 1 else [_clock(cpu, None)]
    nodes = f"{len(cpu.numa_nodes)} NUMA nodes" if len(cpu.numa_nodes) > 1 else ""
    return [first, *each, nodes]


def _kind_line(cpu: CpuTopology, kind: str) -> str:
    cpus = tuple(core.cpu for core in cpu.cores if core.kind == kind)
    return _joined([f"{kind}: CPUs {format_cpu_list(cpus)}", _clock(cpu, kind)])


def _clock(cpu: CpuTopology, kind: str | None) -> str:
    known = [core.max_mhz for core in cpu.cores if core.max_mhz and kind in (None, core.kind)]
    return f"up to {max(known):.0f} MHz" if known else ""


def _usable(machine: Machine) -> list[str]:
    all_cpus = tuple(core.cpu for core in machine.cpu.cores)
    if set(machine.usable) >= set(all_cpus):
        affinity = "all CPUs"
    else:
        affinity = f"CPUs {format_cpu_list(machine.usable)} of {format_cpu_list(all_cpus)} by affinity"
    if machine.quota_cpus is None:
        return [f"{affinity}, no quota"]
    return [f"{affinity}; this control group may use {machine.quota_cpus:.3g} CPUs' worth of time"]


def _caches(cpu: CpuTopology) -> str:
    counted = Counter((c.level, c.kind, c.size_bytes) for c in cpu.caches)
    letters = {"data": "d", "instruction": "i", "unified": ""}
    words = [
        f"L{level}{letters[kind]} {format_bytes(size)}" + (f" x {count}" if count > 1 else "")
        for (level, kind, size), count in counted.items()
    ]
    return ", ".join(words) or "unknown"


def _memory(memory: MemoryInfo) -> list[str]:
    lines = [f"{format_bytes(memory.total_bytes)} in all, {format_bytes(memory.available_bytes)} available"]
    if memory.limit_bytes is not None:
        cache = memory.limit_cache_bytes or 0
        used = format_bytes(memory.limit_used_bytes) + (f", of it {format_bytes(cache)} cache" if cache else "")
        lines.append(f"this control group may use {format_bytes(memory.limit_bytes)} (used: {used})")
    if not memory.swap_total_bytes:
        lines.append("" if memory.swap_total_bytes is None else "no swap")
    else:
        zram = f", {format_bytes(memory.zram_bytes)} of it compressed memory (zram)" if memory.zram_bytes else ""
        lines.append(f"swap {format_bytes(memory.swap_total_bytes)}, {format_bytes(memory.swap_free_bytes)} free{zram}")
    return lines


def _bandwidth(measured: Measured) -> str:
    rates = [f"{n}: {rate / 1e9:.1f}" for n, rate in sorted(measured.read_bytes_per_s_by_threads.items())]
    when = datetime.fromtimestamp(measured.measured_at_s).strftime("%Y-%m-%d %H:%M")
    return f"read GB/s by threads: {', '.join(rates)} (measured {when})"


def _storage(storage: StorageInfo) -> list[str]:
    rate = storage.read_bytes_per_s
    speed = (
        f"reads {rate / 1e6:.0f} MB/s ({_METHODS.get(storage.method or '', 'unknown way')})" if rate else "rate unknown"
    )
    ahead = f"read-ahead {format_bytes(storage.read_ahead_bytes)}" if storage.read_ahead_bytes is not None else None
    what = _joined([storage.kind, storage.device if storage.device != storage.kind else None, storage.filesystem], " ")
    return [_joined([what, speed, ahead]), f"at {storage.path}"]


def _accelerators(found: Accelerators) -> list[str]:
    # Simulators and software renderers call themselves processors too; they are not what runs models by default.
    others = [device for device in found.devices if device.kind != "cpu" or device.name not in _PROCESSORS]
    lines = [_accelerator(device) for device in others] or ["none besides the processor"]
    return [*lines, *found.problems]


def _accelerator(device: Accelerator) -> str:
    memory = None
    if device.total_bytes:
        memory = f"{format_bytes(device.free_bytes)} of {format_bytes(device.total_bytes)} free"
    return _joined([f"{device.name} ({device.kind}, by {device.library})", device.description, memory])


def _engine(engine: dict[str, Any]) -> str:
    return f"{engine['name']}: {engine['version'] or engine['problem'] or 'not available'}"


def _joined(parts: Iterable[str | None], separator: str = "; ") -> str:
    return separator.join(part for part in parts if part)
