"""The llama.cpp engine: GGUF files through llama-cpp-python's low-level API. Nothing native loads on import."""

from wattwise_runtimes.engines.llamacpp.backend import BACKEND

__all__ = ["BACKEND"]
