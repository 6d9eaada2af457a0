"""Drawing the next token from logits: one implementation for every engine, with llama.cpp's semantics."""

from wattwise.sampling.params import SamplerParams
from wattwise.sampling.sampler import Sampler, SamplerState

__all__ = ["Sampler", "SamplerParams", "SamplerState"]
