"""`python -m wattwise`: the command line."""

import sys

from wattwise.cli import main

sys.exit(main())
