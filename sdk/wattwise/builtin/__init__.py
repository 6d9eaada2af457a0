"""The model that ships inside the package: where its file lies and what it is.

It only finds the file. Loading it is the business of `Model.load`, as with any other file; how it was made is
told in CARD.md beside it, and the recipe lies in the repository's `models/`.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from wattwise_devices.errors import LoadError

__all__ = ["BUILTIN_NAME", "builtin_card", "builtin_info", "builtin_model_path"]

BUILTIN_NAME = "wattwise-tiny"
_MODEL, _CARD = "model.gguf", "CARD.md"


def builtin_model_path() -> Path:
    """The built-in model's GGUF file."""
    return _existing(_MODEL)


def builtin_info() -> str:
    """What a person should know before talking to it, in two short sentences."""
    size_mb = builtin_model_path().stat().st_size / 1e6
    return (
        f"{BUILTIN_NAME} is a toy of 3.9 million parameters ({size_mb:.1f} MB): it makes small talk and tells tiny "
        "stories, and what it says about the world is invented. For real answers load a bigger model."
    )


def builtin_card() -> str:
    """The model card, Markdown: data, licences, figures, transcripts, limits."""
    return _existing(_CARD).read_text(encoding="utf-8")


def _existing(name: str) -> Path:
    # Engines map the file into memory, so it has to be a real one: a zipped package has none.
    path = Path(str(resources.files(__name__).joinpath(name)))
    if not path.is_file():
        raise LoadError(
            f"the built-in model's {name} is not at {path}: the installation is incomplete. Install wattwise "
            "again from a wheel or a clone, or name a model file of your own instead of 'builtin'"
        )
    return path
