"""Memory of the machine and of this process's control group, with swap and compressed swap (zram).

The limits come from limits.py. Swap is reported and never counted as room: a model in swap runs at storage speed.
zram is memory: what it has compressed still occupies `zram_used_bytes` of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from wattwise_devices.kernel_text import natural
from wattwise_devices.limits import MemoryLimits, memory_limits
from wattwise_devices.system import System

_ZRAM_USED_FIELD = 2  # mem_used_total in /sys/block/zram*/mm_stat


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryInfo:
    """Bytes, None if unknown. limit: of the control group; limit_used: charged to it; limit_cache: of that, file
    pages that the kernel can drop. zram: size of the compressed swap devices in use."""

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None
    limit_used_bytes: int | None
    limit_cache_bytes: int | None
    swap_total_bytes: int | None
    swap_free_bytes: int | None
    zram_bytes: int | None
    zram_used_bytes: int | None

    @property
    def allowed_bytes(self) -> int | None:
        """How many more bytes this process may take before it swaps, or its group is killed."""
        return self.limits().allowed_bytes

    def limits(self) -> MemoryLimits:
        """The part that limits.py knows."""
        return MemoryLimits(
            total_bytes=self.total_bytes,
            available_bytes=self.available_bytes,
            limit_bytes=self.limit_bytes,
            limit_used_bytes=self.limit_used_bytes,
            limit_cache_bytes=self.limit_cache_bytes,
        )


def read_memory_info(system: System) -> MemoryInfo:
    """As it is now."""
    limits, numbers = memory_limits(system.root), _meminfo(system)
    size, used = _zram(system)
    return MemoryInfo(
        total_bytes=limits.total_bytes,
        available_bytes=limits.available_bytes,
        limit_bytes=limits.limit_bytes,
        limit_used_bytes=limits.limit_used_bytes,
        limit_cache_bytes=limits.limit_cache_bytes,
        swap_total_bytes=numbers.get("SwapTotal"),
        swap_free_bytes=numbers.get("SwapFree"),
        zram_bytes=size,
        zram_used_bytes=used,
    )


def _meminfo(system: System) -> dict[str, int]:
    lines = [line.partition(":") for line in (system.read_text("/proc/meminfo") or "").splitlines()]
    kib = {name: natural(" ".join(rest.split()[:1])) for name, _, rest in lines}
    return {name: number * 1024 for name, number in kib.items() if number is not None}


def _zram(system: System) -> tuple[int | None, int | None]:
    """(size, memory used) of the zram devices that serve as swap; None where /proc/swaps cannot be read."""
    swaps = system.read_text("/proc/swaps")
    if swaps is None:
        return None, None
    names = [line.split()[0].rpartition("/")[2] for line in swaps.splitlines() if line.startswith("/")]
    devices = [name for name in names if name.startswith("zram")]
    size = sum(natural(system.read_text(f"/sys/block/{name}/disksize")) or 0 for name in devices)
    stats = [(system.read_text(f"/sys/block/{name}/mm_stat") or "").split() for name in devices]
    return size, sum(natural("".join(s[_ZRAM_USED_FIELD : _ZRAM_USED_FIELD + 1])) or 0 for s in stats)
