"""macOS: the `powermetrics` tool, which only root may run. Package power, by Apple an estimate of its own model.

Every look lasts a fifth of a second and returns that time's mean. Never asks for a password: run wattwise with sudo,
or allow the command in sudoers. Source: powermetrics(1).
"""

from __future__ import annotations

import re

from wattwise_devices.meters.samples import SampleMeter
from wattwise_devices.meters.source import Opened
from wattwise_devices.profile import Profile
from wattwise_devices.system import System

_TOOL = ("powermetrics", "--samplers", "cpu_power", "-n", "1", "-i", "200")
_COMMANDS = (_TOOL, ("sudo", "-n", *_TOOL))
_MACOS = "/System/Library/CoreServices/SystemVersion.plist"
_APPLE = re.compile(r"^Combined Power \(CPU \+ GPU(?: \+ ANE)?\):\s*(\d{1,7}(?:\.\d{1,6})?) mW\s*$", re.MULTILINE)
_INTEL = re.compile(r"derived package power \([^)]*\):\s*(\d{1,4}(?:\.\d{1,6})?)\s*W\s*$", re.MULTILINE)
_RATE_HZ = 2.0


def open_powermetrics(system: System, profile: Profile | None = None) -> Opened:
    """Meter "powermetrics" of the package."""
    if system.read_text(_MACOS) is None:
        return Opened(reasons=("not macOS",))
    for command in _COMMANDS:
        if parse_watts(system.run(command)) is not None:
            meter = SampleMeter(
                "powermetrics", "package", system, lambda c=command: parse_watts(system.run(c)), rate_hz=_RATE_HZ
            )
            return Opened((meter,))
    return Opened(reasons=("powermetrics needs root: run with sudo, or allow it in sudoers without a password",))


def parse_watts(text: str | None) -> float | None:
    """The processor's package power in either of the tool's two formats."""
    apple, intel = _APPLE.search(text or ""), _INTEL.search(text or "")
    if apple:
        return float(apple[1]) / 1000
    return float(intel[1]) if intel else None
