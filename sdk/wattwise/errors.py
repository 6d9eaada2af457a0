"""Every error that wattwise raises on purpose; the tree is drawn in `wattwise_devices.errors`."""

from wattwise_devices.errors import *  # noqa: F403
from wattwise_devices.errors import __all__ as __all__
