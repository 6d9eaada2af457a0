"""How kernels write numbers and sets of CPUs ("0-3,8,10-11", Documentation/admin-guide/cputopology.rst).

Files of /proc and /sys can hold anything in containers, on phones and on broken drivers, so parsing never raises.
"""

from __future__ import annotations

_MOST_CPUS = 1 << 16  # a garbled range must not fill the memory
_MOST_DIGITS = 19  # of a 64-bit number


def natural(text: str | None) -> int | None:
    """A whole number from 0 to 2^63, written in decimal digits alone; None for everything else."""
    word = (text or "").strip()
    if not (word.isascii() and word.isdecimal()) or len(word) > _MOST_DIGITS:
        return None
    return int(word)


def parse_cpu_list(text: str | None) -> tuple[int, ...]:
    """The numbers in order; () for None, an empty text, or anything that is not such a list."""
    cpus: set[int] = set()
    for part in (text or "").split(","):
        first, dash, last = part.partition("-")
        low = natural(first)
        high = natural(last) if dash else low
        if low is None or high is None or not low <= high < _MOST_CPUS:
            return ()
        cpus.update(range(low, high + 1))
    return tuple(sorted(cpus))


def format_cpu_list(cpus: tuple[int, ...]) -> str:
    """The inverse, with ranges where they are shorter."""
    parts: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if parts and cpu == parts[-1][1] + 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
