"""Sources of a conversion: whatever a model comes as, opened as a Checkpoint. One file per kind.

`open_checkpoint(path)` asks each kind whether it `claims(path)`; the first that does opens it. Nothing but headers is
read until weights are asked for, and those come a few rows at a time.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from wattwise_convert.checkpoint import Checkpoint
from wattwise_devices.errors import LoadError

_KINDS = ("hf", "gguf", "llama2c")  # in the order of asking


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The model at `path`: a Hugging Face folder, a GGUF file, or a llama2.c .bin file.

    Raises LoadError where there is none, CorruptArtifact or UnsupportedArchitecture for one that cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise LoadError(f"there is no model at {path}")
    for kind in _KINDS:
        source = importlib.import_module(f"{__name__}.{kind}")
        if source.claims(path):
            return source.open_source(path)
    if path.is_dir():
        raise LoadError(f"{path} is a folder without config.json; a Hugging Face model folder has one.")
    from wattwise_runtimes.formats.safetensors import refuse_pickle

    refuse_pickle(path)
    hint = " Give the folder that holds it and its config.json." if path.suffix == ".safetensors" else ""
    raise LoadError(
        f"{path} is no model that can be converted: a Hugging Face folder, .gguf, or llama2.c's .bin.{hint}"
    )
