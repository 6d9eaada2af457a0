"""One module or package per engine; each has a `BACKEND` (see `contracts.Backend`). Discovery: `registry.py`."""
