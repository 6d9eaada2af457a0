"""The reference engine: numpy, float32, small, obviously right. Slow; the yardstick of all others.

It shows every capability that the contract has (trees, token-level eviction, keys, attention, export), so the
conformance test and the policies can be developed against it. It loads GGUF files, or canonical weights directly.
"""

from wattwise_runtimes.engines.reference.backend import BACKEND
from wattwise_runtimes.engines.reference.engine import ReferenceEngine

__all__ = ["BACKEND", "ReferenceEngine"]
