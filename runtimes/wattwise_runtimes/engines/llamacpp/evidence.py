"""What llama.cpp itself said while it loaded a model: which buffers it made, where, how large.

Nothing here is what was asked for. Sizes stand in the native log with two decimals of a MiB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wattwise_runtimes.contracts import Ledger

_MIB = 1 << 20
_BUFFER = re.compile(r":\s+(\S+)\s+(model|KV|compute|output) buffer size\s*=\s*([0-9.]+) MiB")
_PLACED = re.compile(r"^tensor (\S+) \(.*\) buffer type overridden to (\S+)$")
_KEY_ROTATION = re.compile(r"attn_rot_k\s+=\s+(\d)")
_FLASH = re.compile(r"flash_attn\s+=\s+(\w+)")


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes by buffer type ("CPU", "CPU_REPACK", "Vulkan0", ...) and what they are for."""

    model: dict[str, int]
    kv: dict[str, int]
    compute: dict[str, int]
    output: dict[str, int]


def read_buffers(lines: Sequence[str]) -> Buffers:
    """The buffers that a captured log speaks of."""
    found: dict[str, dict[str, int]] = {"model": {}, "KV": {}, "compute": {}, "output": {}}
    for line in lines:
        match = _BUFFER.search(line)
        if match:
            place, what, mib = match.groups()
            found[what][place] = found[what].get(place, 0) + round(float(mib) * _MIB)
    return Buffers(found["model"], found["KV"], found["compute"], found["output"])


def read_placements(lines: Sequence[str]) -> set[tuple[str, str]]:
    """(tensor, buffer type) of every weight that was made; a tied head may stand in two buffer types."""
    return {(m[1], m[2]) for m in map(_PLACED.match, lines) if m}


def read_flash_attention(lines: Sequence[str]) -> str:
    """llama.cpp's word for it: "enabled", "disabled", "auto", or "" where it said nothing."""
    return next((m[1] for m in map(_FLASH.search, lines) if m), "")


def read_key_rotation(lines: Sequence[str]) -> bool:
    """Whether any of the caches rotates its keys before it stores them."""
    return any(m[1] != "0" for m in map(_KEY_ROTATION.search, lines) if m)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of one loaded engine from outside its context."""

    buffers: Buffers
    flash_attention: str
    system_info: str
    devices: tuple[str, ...]
    library: str
    compute_bytes: int  # compute and output buffers at their largest, and ggml's work buffer
    tables_bytes: int  # vocabulary, graphs, cell tables: growth of resident memory beyond the buffers

    def ledger(self, *, kv_bytes: int) -> Ledger:
        """What the engine holds."""
        return Ledger(
            weights=sum(self.buffers.model.values()),
            kv=kv_bytes,
            compute=self.compute_bytes,
            runtime=self.tables_bytes,
        )

    def where(self, *, threads: int, threads_batch: int) -> dict[str, Any]:
        """Devices by phase from the compute buffers, and everything else that tells where work and bytes are."""
        places = [_device(name) for name in self.buffers.compute] or ["cpu"]
        device = "+".join(dict.fromkeys(places))
        return {
            "prefill": device,
            "decode": device,
            "library": self.library,
            "weights_bytes": dict(self.buffers.model),
            "kv_buffers": sorted(self.buffers.kv),
            "flash_attention": self.flash_attention,
            "threads": threads,
            "threads_batch": threads_batch,
            "devices": list(self.devices),
            "system_info": self.system_info,
        }


def _device(buffer_type: str) -> str:
    return "cpu" if buffer_type.startswith("CPU") else buffer_type.lower()
