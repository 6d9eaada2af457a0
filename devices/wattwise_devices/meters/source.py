"""What a meter's file gives to the registry: the meters it found and, in words, why it found no more.

Not a meter. `finite` and `number` are how all of them read numbers: a garbled text is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from wattwise_devices.meters.contract import Meter
from wattwise_devices.profile import Profile
from wattwise_devices.system import System


@dataclass(frozen=True, slots=True)
class Opened:
    """meters: those that answer now. reasons: what is there but cannot be used, or why nothing is there."""

    meters: tuple[Meter, ...] = ()
    reasons: tuple[str, ...] = ()


Opener = Callable[[System, Profile | None], Opened]


def finite(value: float | None) -> float | None:
    """The value unless it is None, infinite or not a number."""
    return value if value is not None and math.isfinite(value) else None


def number(text: str | None) -> float | None:
    """A decimal number; None for everything else, "inf", "nan" and "1_0" included."""
    if not text or "_" in text:
        return None
    try:
        return finite(float(text))
    except ValueError:
        return None
