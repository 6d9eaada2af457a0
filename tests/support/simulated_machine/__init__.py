"""A machine made of formulas that writes the files real machines have: the governor's test bench.

`physics` turns threads and duty into watts, tokens and degrees; `machines` holds four sets of parameters;
`sensors` adds noise, steps and lag and writes sysfs files and `vcgencmd` text; `machine` runs it all on a clock of
its own. Not a model of any one product: parameters have a source or are named as assumptions.
"""

from support.simulated_machine.machine import Doing, SimulatedMachine
from support.simulated_machine.machines import LAPTOP, LAPTOP_RAPL, MACHINES, PHONE, PI5_BARE, PI5_FAN
from support.simulated_machine.physics import MachineSpec

__all__ = [
    "LAPTOP",
    "LAPTOP_RAPL",
    "MACHINES",
    "PHONE",
    "PI5_BARE",
    "PI5_FAN",
    "Doing",
    "MachineSpec",
    "SimulatedMachine",
]
