"""The model that ships inside the package: where its file lies and what it is.

It only finds the file. Loading it is the business of `Model.load`, as with any other file; how it was made is
told in CARD.md beside it, and the recipe lies in the repository's `models/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from wattwise_devices.errors import LoadError

__all__ = ["BuiltinInfo", "builtin_info", "builtin_model_path"]

_MODEL, _CARD = "model.gguf", "CARD.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinInfo:
    """What can be said about the built-in model without reading its tensors."""

    name: str
    path: Path
    size_bytes: int
    card: str  # the text of CARD.md, Markdown


def builtin_model_path() -> Path:
    """The built-in model's GGUF file."""
    return _existing(_MODEL)


def builtin_info() -> BuiltinInfo:
    path = builtin_model_path()
    return BuiltinInfo(
        name="wattwise-tiny",
        path=path,
        size_bytes=path.stat().st_size,
        card=_existing(_CARD).read_text(encoding="utf-8"),
    )


def _existing(name: str) -> Path:
    # Engines map the file into memory, so it has to be a real one: a zipped package has none.
    path = Path(str(resources.files(__name__).joinpath(name)))
    if not path.is_file():
        raise LoadError(
            f"the built-in model's {name} is not at {path}: the installation is incomplete. Install wattwise "
            "again from a wheel or a clone, or name a model file of your own instead of 'builtin'"
        )
    return path
