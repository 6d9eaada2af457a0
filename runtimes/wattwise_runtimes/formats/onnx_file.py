"""ONNX model folders in onnxruntime-genai's layout: genai_config.json names the model file and how its inputs work.

Checked: the configuration is bounded JSON, the model file lies in the folder, nothing asks for a library to be loaded.
The model file itself is checked by `onnx_model`, whose names are given on here: callers need only this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattwise_devices.errors import CorruptArtifact, LoadError, UnsupportedArchitecture
from wattwise_runtimes.formats.json_file import read_json_object
from wattwise_runtimes.formats.onnx_model import OnnxFile, OnnxTensor, OnnxValue, parse_onnx, read_onnx

__all__ = [
    "OnnxFile", "OnnxFolder", "OnnxTensor", "OnnxValue", "check_onnx_folder", "parse_onnx", "read_onnx",
]  # fmt: skip

CONFIG_NAME = "genai_config.json"
_MAX_CONFIG_BYTES = 1 << 20
_LOADS_CODE = ("custom_ops_library", "ep_library", "library_path", "registration_name")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFolder:
    """A checked folder: its configuration, the model file and what that holds."""

    path: Path
    genai_config: dict[str, Any]
    model_path: Path
    model: OnnxFile


def check_onnx_folder(folder: str | Path) -> OnnxFolder:
    """Check genai_config.json and the model that it names."""
    folder = Path(folder)
    if not folder.is_dir():
        raise LoadError(f"{folder} is not a folder. An ONNX model is a folder with {CONFIG_NAME} and a .onnx file.")
    config_path = folder / CONFIG_NAME
    config = read_json_object(config_path, _MAX_CONFIG_BYTES)
    for key in _keys(config):
        if key in _LOADS_CODE:
            raise UnsupportedArchitecture(
                f"{config_path}: {key!r} asks to load a library, which can run any code. Remove it if the model works "
                "without, else use another model."
            )
    model_path = _model_path(folder, config_path, config)
    return OnnxFolder(path=folder, genai_config=config, model_path=model_path, model=read_onnx(model_path))


def _keys(value: Any) -> Iterator[str]:
    """Every key in nested JSON, whose depth is already limited."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


def _model_path(folder: Path, config_path: Path, config: dict[str, Any]) -> Path:
    decoder = config.get("model")
    decoder = decoder.get("decoder") if isinstance(decoder, dict) else None
    if not isinstance(decoder, dict):
        raise CorruptArtifact(config_path, "model.decoder", decoder, "an object")
    if "pipeline" in decoder:
        raise UnsupportedArchitecture(f"{config_path}: a pipeline of several decoder files is not supported.")
    name = decoder.get("filename")
    wanted = "a file inside the folder, as a relative path with '/'"
    if not isinstance(name, str) or not name.isprintable() or not name or set(name) & set('\\:*?"<>|'):
        raise CorruptArtifact(config_path, "model.decoder.filename", name, wanted)
    path = folder / name  # an absolute name replaces the folder and is caught below
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:
        raise CorruptArtifact(config_path, "model.decoder.filename", name, f"{wanted} ({error})") from error
    if not inside or ".." in path.parts[len(folder.parts) :]:
        raise CorruptArtifact(config_path, "model.decoder.filename", name, wanted)
    return path
