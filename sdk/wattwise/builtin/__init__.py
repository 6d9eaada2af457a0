"""The models that ship inside the package: where their files lie and what they are.

Two of a family: the model that `builtin` means, and its draft, `builtin-draft`, which proposes tokens for it. This
module only finds files. Loading them is the business of `wattwise.load`, as with any other file; how they were made
is told in CARD.md beside them, and the recipe lies in the repository's `models/`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from wattwise_devices.errors import LoadError

__all__ = ["BUILTIN_MODELS", "Shipped", "builtin_card", "builtin_info", "builtin_model_path", "draft_path", "shipped"]

BUILTIN_MODELS = ("builtin", "builtin-draft")
_MODEL, _DRAFT, _CARD, _FAMILY = "model.gguf", "draft.gguf", "CARD.md", "family.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """What is known of a shipped file without opening it."""

    name: str
    parameters: int
    bytes: int
    quant: str


def builtin_model_path() -> Path:
    """The built-in model's GGUF file."""
    return _existing(_MODEL)


def draft_path() -> Path:
    """The GGUF file of the built-in model's draft: same tokens, a fraction of the work."""
    return _existing(_DRAFT)


def shipped(model: str = "builtin") -> Shipped:
    """Name and size of `builtin` or `builtin-draft`."""
    rows = json.loads(_existing(_FAMILY).read_text(encoding="utf-8"))
    if model not in rows:
        raise LoadError(f"this installation ships no {model!r}; it has: {', '.join(rows)}")
    return Shipped(**rows[model])


def builtin_info() -> str:
    """What a person should know before talking to it, in two short sentences."""
    model = shipped()
    return (
        f"{model.name} is a toy of {model.parameters / 1e6:.1f} million parameters ({model.bytes / 1e6:.1f} MB): it "
        "makes small talk, tells tiny stories and calls simple tools, and what it says about the world is often "
        "invented. For real answers load a bigger model: wattwise chat MODEL.gguf"
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
