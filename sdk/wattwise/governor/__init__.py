"""The governor: keeps a running model inside its watts, its degrees and its battery.

`governor.Governor.update` is pure: readings in, moves out, no clock and no file of its own. `watch` runs it in a
thread while a reply is made, `pacing` carries out what it says between tokens.
"""

from wattwise.governor.controls import Controls, ControlSpace, Limits, Move, Setting, Work
from wattwise.governor.governor import Governor

__all__ = ["ControlSpace", "Controls", "Governor", "Limits", "Move", "Setting", "Work"]
