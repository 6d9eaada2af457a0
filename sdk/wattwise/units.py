"""Quantities for people: parse what they write, format what they read. Inside, everything is plain numbers."""

from __future__ import annotations

import math
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


def parse_power(text: str | int | float) -> float:
    """Watts from a number or a text such as "6 W", "900mW"."""
    return _quantity(text, {"": 1.0, "w": 1.0, "mw": 1e-3, "kw": 1e3}, "a power", "6 W", 1e-3, 1e5)


def parse_energy(text: str | int | float) -> float:
    """Joules per token from a number or a text such as "0.5 J/token", "500 mJ"."""
    per = ("", "/token", "/tok")
    units = {f"{name}{end}": factor for name, factor in (("j", 1.0), ("mj", 1e-3), ("", 1.0)) for end in per}
    return _quantity(text, units, "an energy per token", "0.5 J/token", 1e-6, 1e6)


def parse_temperature(text: str | int | float) -> float:
    """Degrees Celsius from a number or a text such as "75 C", "75°C"."""
    units = {"": 1.0, "c": 1.0, "°c": 1.0, "° c": 1.0}
    return _quantity(text, units, "a temperature in degrees Celsius", "75 C", 1.0, 150.0)


def parse_percent(text: str | int | float) -> float:
    """Percent from a number or a text such as "20 %"."""
    return _quantity(text, {"": 1.0, "%": 1.0}, "a percentage from 0 to 100", "20 %", 0.0, 100.0)


def parse_milliseconds(text: str | int | float) -> float:
    """Milliseconds from a number or a text such as "300 ms", "1.5 s"."""
    return _quantity(text, {"": 1.0, "ms": 1.0, "s": 1e3, "min": 6e4}, "a time", "300 ms", 1e-3, 1e9)


def parse_speed(text: str | int | float) -> float:
    """Tokens per second from a number or a text such as "5 tok/s"."""
    units = {"": 1.0, "/s": 1.0, "t/s": 1.0, "tok/s": 1.0, "token/s": 1.0, "tokens/s": 1.0}
    return _quantity(text, units, "a speed in tokens per second", "5 tok/s", 1e-6, 1e9)


def _quantity(
    text: str | int | float, units: dict[str, float], what: str, example: str, low: float, high: float
) -> float:
    """A number in its base unit, within low and high; ValueError says what would have been understood."""
    value, factor = math.nan, None
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        value, factor = float(text), 1.0
    elif match := re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(\S.*?)?\s*", str(text)):
        value, factor = float(match.group(1)), units.get((match.group(2) or "").lower().replace(" / ", "/"))
    if factor is None or not low <= value * factor <= high:
        raise ValueError(f"{text!r} is not {what}; write it as {example!r} ({low:g} to {high:g})")
    return value * factor


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
