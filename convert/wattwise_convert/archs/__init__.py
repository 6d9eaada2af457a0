"""Architectures: one file per `model_type` of Hugging Face, found by its name.

Each file has `spec(config) -> ModelSpec`, and `places(spec) -> Places` where the tensors are not laid out like
Llama's. What a file does not know it refuses by name; it never guesses. See `_common` for what they share.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wattwise_convert.archs._common import Places, llama_places
from wattwise_convert.archs._config import Config
from wattwise_devices.errors import UnsupportedArchitecture
from wattwise_runtimes.spec import ModelSpec

# gemma3: the first text-only files say so; the image models' text part is handled in `sources.hf`
ALIASES = {"gemma3": "gemma3_text"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """What converting needs of one architecture file."""

    spec: Callable[[Config], ModelSpec]
    places: Callable[[ModelSpec], Places]


def known() -> list[str]:
    """Every model_type that can be read."""
    files = Path(__file__).parent.glob("[!_]*.py")
    return sorted({file.stem for file in files} | set(ALIASES))


def find(model_type: object, where: object) -> Architecture:
    """The architecture of a `model_type`; `where` is for the message."""
    if not isinstance(model_type, str) or model_type not in known():
        raise UnsupportedArchitecture(f"{where}: model_type is {model_type!r}; known are {', '.join(known())}.")
    module = importlib.import_module(f"{__name__}.{ALIASES.get(model_type, model_type)}")
    return Architecture(module.spec, getattr(module, "places", llama_places))
