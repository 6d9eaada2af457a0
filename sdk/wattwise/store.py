"""From what a person calls a model to a path: "builtin", "builtin-draft", or the path itself."""

from __future__ import annotations

from pathlib import Path

from wattwise_devices.errors import LoadError

_SHIPPED = ("builtin", "builtin-draft")


def resolve_model(model: str | Path) -> Path:
    """The file or folder of a model; raises LoadError, saying what was looked for."""
    if str(model) in _SHIPPED:
        from wattwise.builtin import builtin_model_path, draft_path

        return builtin_model_path() if str(model) == "builtin" else draft_path()
    path = Path(model).expanduser()
    if not path.exists():
        raise LoadError(f"there is no model {str(model)!r}: give a .gguf file, an ONNX folder, or 'builtin'")
    return path


def model_reference(model: str | Path) -> str:
    """What to call a model in a file that outlives this process: the name of a shipped one, else an absolute path."""
    return str(model) if str(model) in _SHIPPED else str(Path(model).expanduser().resolve())
