"""Bytes and times for people: parse what they write, format what they read. Inside, everything is plain numbers."""

from __future__ import annotations

import re

_FACTORS = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "kib": 1 << 10,
    "m": 1000**2, "mb": 1000**2, "mib": 1 << 20,
    "g": 1000**3, "gb": 1000**3, "gib": 1 << 30,
    "t": 1000**4, "tb": 1000**4, "tib": 1 << 40,
}  # fmt: skip


def parse_bytes(text: str | int | float) -> int:
    """Bytes from a number or a text such as "3.5GiB", "900 MB", "2g" (SI and binary units, any case)."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        value, factor = float(text), 1
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-zA-Z]*)\s*", str(text))
        if match is None or match.group(2).lower() not in _FACTORS:
            raise ValueError(f"{text!r} is not a size; write bytes, or a number with a unit: 900MB, 3.5GiB")
        value, factor = float(match.group(1)), _FACTORS[match.group(2).lower()]
    size = value * factor
    if not 0 < size < 2**60:
        raise ValueError(f"{text!r} is not a usable size; it must be more than 0 bytes and less than 1 EiB")
    return round(size)


def format_bytes(count: float | None) -> str:
    """A size in binary units with three digits, "n/a" for None."""
    if count is None:
        return "n/a"
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= factor:
            value = count / factor
            return (
                f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
            )
    return f"{count:.0f} B"
