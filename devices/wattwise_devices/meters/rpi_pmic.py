"""Raspberry Pi 5's power management chip: `vcgencmd pmic_read_adc` lists current and voltage of its rails.

The sum over the rails that have both is the board's power, without the converters' losses and what USB ports and HATs
take from the 5 V input, whose current is not measured. No counter exists; every look starts a command (milliseconds
of processor time). Format: Raspberry Pi's documentation of vcgencmd; lines such as
"  VDD_CORE_A current(7)=2.42110000A" and "  VDD_CORE_V volt(15)=0.87664860V".
"""

from __future__ import annotations

import re

from wattwise_devices.meters.samples import SampleMeter
from wattwise_devices.meters.source import Opened
from wattwise_devices.profile import Profile
from wattwise_devices.system import System

_COMMAND = ("vcgencmd", "pmic_read_adc")
_LINE = re.compile(r"\s*(\w{1,30})_([AV])\s+(?:current|volt)\(\d+\)=(-?\d{1,6}(?:\.\d{1,12})?)([AV])\s*")
_RATE_HZ = 10.0  # assumption: the chip converts faster than anybody asks
_STANDSTILL_S = 5.0  # twenty-four values with eight decimals do not repeat


def open_rpi_pmic(system: System, profile: Profile | None = None) -> Opened:
    """Meter "pmic" of the board."""
    text = system.run(_COMMAND)
    rails = parse_rails(text)
    if not rails:
        why = "`vcgencmd pmic_read_adc` is not there or does not answer (only a Raspberry Pi 5 has it)"
        return Opened(reasons=(why if text is None else "`vcgencmd pmic_read_adc` answers without any rail's power",))
    names = frozenset(rails)

    def watts() -> float | None:
        now = parse_rails(system.run(_COMMAND))
        return sum(now.values()) if frozenset(now) >= names else None  # a part is never called the total

    return Opened((SampleMeter("pmic", "board", system, watts, rate_hz=_RATE_HZ, standstill_s=_STANDSTILL_S),))


def parse_rails(text: str | None) -> dict[str, float]:
    """Watts by rail, of those with both current and voltage."""
    amperes: dict[str, float] = {}
    volts: dict[str, float] = {}
    for line in (text or "").splitlines():
        match = _LINE.fullmatch(line)
        if match and match[2] == match[4]:
            (amperes if match[2] == "A" else volts)[match[1]] = float(match[3])
    return {rail: max(0.0, current * volts[rail]) for rail, current in amperes.items() if rail in volts}
