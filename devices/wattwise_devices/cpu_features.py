"""What /proc/cpuinfo says: the processor's name and the instruction sets that matter to matrix products.

The kernel's flags are mapped to one short list of names that both x86 and ARM share where they mean the same. Only
what every processor has is reported, because a thread may run on any of them.
Formats: arch/x86/kernel/cpu/proc.c and arch/arm64/kernel/cpuinfo.c of Linux; part numbers from ARM's MIDR_EL1 tables.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from wattwise_devices.kernel_text import natural
from wattwise_devices.system import System

_X86 = ("ssse3", "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512vbmi",
        "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16")  # fmt: skip
_ARM = {"neon": "neon", "asimd": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16",
        "sve": "sve", "sve2": "sve2", "svei8mm": "svei8mm", "sme": "sme", "sme2": "sme2"}  # fmt: skip
FEATURE_OF_FLAG = {**{name: name for name in _X86}, **_ARM}

_ARM_PARTS = {
    0xB76: "ARM1176", 0xC07: "Cortex-A7", 0xC0F: "Cortex-A15", 0xD01: "Cortex-A32", 0xD03: "Cortex-A53",
    0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD09: "Cortex-A73",
    0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77", 0xD0E: "Cortex-A76AE",
    0xD40: "Neoverse-V1", 0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510",
    0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4B: "Cortex-A78C", 0xD4C: "Cortex-X1C",
    0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3", 0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720",
    0xD82: "Cortex-X4", 0xD85: "Cortex-X925", 0xD87: "Cortex-A725",
}  # fmt: skip
_ARM_LITTLE_PARTS = frozenset({0xC07, 0xD01, 0xD03, 0xD04, 0xD05, 0xD46, 0xD80})
_ARM_LTD = 0x41


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuInfo:
    """model_name: as the system or the part numbers say. features: common to all processors, in a fixed order.

    processors: numbers listed. little: of these, the ones whose part is known to be a small core of ARM's.
    parts_known: whether every processor's part is in our table. hypervisor: the flag that x86 guests see.
    board: what a Raspberry Pi's kernel writes at the end.
    """

    model_name: str | None
    features: tuple[str, ...]
    processors: tuple[int, ...]
    little: frozenset[int]
    parts_known: bool
    hypervisor: bool
    board: str | None


def read_cpu_info(system: System) -> CpuInfo:
    """Everything we use of /proc/cpuinfo; empty where there is none."""
    blocks = _blocks(system.read_text("/proc/cpuinfo") or "")
    tail = {key: value for block in blocks if "processor" not in block for key, value in block.items()}
    cpus = {number: {**tail, **b} for b in blocks if (number := natural(b.get("processor"))) is not None}
    parts = {cpu: _arm_part(block) for cpu, block in cpus.items()}
    flags = [_flags(block) for block in cpus.values()]
    common = frozenset.intersection(*flags) if flags else frozenset()
    return CpuInfo(
        model_name=_model_name(list(cpus.values()), list(parts.values())),
        features=_features(common),
        processors=tuple(sorted(cpus)),
        little=frozenset(cpu for cpu, part in parts.items() if part in _ARM_LITTLE_PARTS),
        parts_known=bool(parts) and all(part in _ARM_PARTS for part in parts.values()),
        hypervisor="hypervisor" in common,
        board=tail.get("Model") or None,
    )


def _blocks(text: str) -> list[dict[str, str]]:
    """Paragraphs of "key : value" lines."""
    blocks: list[dict[str, str]] = []
    for paragraph in text.split("\n\n"):
        pairs = [line.partition(":") for line in paragraph.splitlines() if ":" in line]
        if pairs:
            blocks.append({key.strip(): value.strip() for key, _, value in pairs})
    return blocks


def _flags(block: dict[str, str]) -> frozenset[str]:
    return frozenset((block.get("flags") or block.get("Features") or "").split())


def _features(flags: frozenset[str]) -> tuple[str, ...]:
    found = {name for flag, name in FEATURE_OF_FLAG.items() if flag in flags}
    return tuple(name for name in dict.fromkeys(FEATURE_OF_FLAG.values()) if name in found)


def _arm_part(block: dict[str, str]) -> int | None:
    """The part number of a core designed by ARM itself; None for all others."""
    try:
        maker, part = int(block["CPU implementer"], 16), int(block["CPU part"], 16)
    except (KeyError, ValueError):
        return None
    return part if maker == _ARM_LTD else None


def _model_name(blocks: list[dict[str, str]], parts: list[int | None]) -> str | None:
    names = [b[key] for b in blocks for key in ("model name", "uarch", "cpu model") if b.get(key)]
    if names:
        return " ".join(names[0].split())
    counts = Counter(_ARM_PARTS[part] for part in parts if part in _ARM_PARTS)
    if counts:
        return " + ".join(f"{count}x {name}" for name, count in counts.items())
    return next((b["Hardware"] for b in blocks if b.get("Hardware")), None)
