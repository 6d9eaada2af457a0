"""The same facts on macOS, which has no /proc: from `sysctl` and `vm_stat`, read through the system's commands.

Apple's processors list their kinds of cores as performance levels, fastest first. A process cannot be bound to CPUs
there, so the numbering is ours: the cores of level 0 first.
"""

from __future__ import annotations

import re

from wattwise_devices.caches import Cache
from wattwise_devices.kernel_text import natural
from wattwise_devices.memory_info import MemoryInfo
from wattwise_devices.system import System
from wattwise_devices.topology import Core, CoreKind, CpuTopology

_FEATURES = {
    "hw.optional.neon": "neon", "hw.optional.arm.FEAT_FP16": "fp16", "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_I8MM": "i8mm", "hw.optional.arm.FEAT_BF16": "bf16", "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.avx2_0": "avx2", "hw.optional.avx512f": "avx512f",
}  # fmt: skip
_DROPPABLE = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")


def read_topology(system: System) -> CpuTopology | None:
    """None where `sysctl` does not answer."""
    facts = _sysctl(system)
    total = natural(facts.get("hw.logicalcpu"))
    if not total:
        return None
    levels = natural(facts.get("hw.nperflevels")) or 1
    cores: list[Core] = []
    caches: list[Cache] = []
    for level in range(min(levels, 8)):
        prefix = f"hw.perflevel{level}." if levels > 1 else "hw."
        count = natural(facts.get(f"{prefix}logicalcpu")) or (total if levels == 1 else 0)
        kind: CoreKind = "performance" if level == 0 else "efficiency"
        first = len(cores)
        cores += [_core(first + number, kind) for number in range(min(count, 1024))]
        shared_by = natural(facts.get(f"{prefix}cpusperl2")) or 1
        caches += _l2(natural(facts.get(f"{prefix}l2cachesize")), shared_by, first, len(cores))
    return CpuTopology(
        model_name=facts.get("machdep.cpu.brand_string"),
        architecture=facts.get("hw.machine"),
        cores=tuple(cores),
        features=tuple(name for key, name in _FEATURES.items() if facts.get(key) == "1"),
        caches=tuple(caches),
        numa_nodes=(),
    )


def read_memory_info(system: System) -> MemoryInfo | None:
    """Available: free, inactive, speculative and purgeable pages, as the system would give them."""
    facts = _sysctl(system)
    total = natural(facts.get("hw.memsize"))
    if total is None:
        return None
    swap_total, swap_free = _swap(facts.get("vm.swapusage", ""))
    return MemoryInfo(
        total_bytes=total,
        available_bytes=_available(system.run(["vm_stat"]) or ""),
        limit_bytes=None,
        limit_used_bytes=None,
        limit_cache_bytes=None,
        swap_total_bytes=swap_total,
        swap_free_bytes=swap_free,
        zram_bytes=None,
        zram_used_bytes=None,
    )


def read_board(system: System) -> str | None:
    """Apple's model identifier, such as "MacBookAir10,1"."""
    return _sysctl(system).get("hw.model")


def _sysctl(system: System) -> dict[str, str]:
    lines = [
        line.partition(": ")
        for line in (system.run(["sysctl", "hw", "machdep.cpu", "vm.swapusage"]) or "").splitlines()
    ]
    return {key: value.strip() for key, colon, value in lines if colon}


def _core(number: int, kind: CoreKind) -> Core:
    return Core(cpu=number, core_id=number, package=0, kind=kind, smt_sibling_of=None, max_mhz=None, capacity=None)


def _l2(size_bytes: int | None, shared_by: int, first: int, end: int) -> list[Cache]:
    if not size_bytes:
        return []
    groups = [tuple(range(start, min(start + shared_by, end))) for start in range(first, end, shared_by)]
    return [Cache(level=2, kind="unified", size_bytes=size_bytes, line_bytes=128, cpus=cpus) for cpus in groups]


def _available(text: str) -> int | None:
    page = re.search(r"page size of ([0-9]{1,9}) bytes", text)
    counts = [re.search(rf"^{name}:\s+([0-9]{{1,15}})\.", text, re.MULTILINE) for name in _DROPPABLE]
    known = [int(match[1]) for match in counts if match]
    return sum(known) * int(page[1]) if page and known else None


def _swap(text: str) -> tuple[int | None, int | None]:
    found = [re.search(rf"{name} = ([0-9]{{1,9}}\.[0-9]+)M", text) for name in ("total", "free")]
    total, free = (round(float(match[1]) * (1 << 20)) if match else None for match in found)
    return total, free
