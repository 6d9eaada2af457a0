"""`wattwise inspect FILE`: what a model file holds, validated, without loading it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wattwise.cli import common
from wattwise.units import format_bytes

HELP = "what a model file holds, validated without loading it"
_SHOWN_CHARACTERS = 100


def arguments(parser: argparse.ArgumentParser) -> None:
    """FILE: a .gguf file, an ONNX folder, or 'builtin'."""
    parser.add_argument(
        "file", metavar="FILE", help="a .gguf file, an ONNX folder, a Hugging Face folder, or 'builtin'"
    )
    parser.add_argument("--tensors", action="store_true", help="list every tensor too")


def run(options: argparse.Namespace) -> int:
    """Validate and describe."""
    from wattwise.store import resolve_model

    path = resolve_model(options.file)
    found = describe(path)
    if options.json:
        common.print_json(found)
        return 0
    print(f"{path}: {found['format']}, {found['parameters'] / 1e6:.2f}M parameters, {found['quant']}")
    print(f"weights {format_bytes(found['weights_bytes'])} in {len(found['tensors'])} tensors")
    for name, value in found["spec"].items():
        if value not in (None, (), ""):
            print(f"  {name:18} {_short(value)}")
    for name, value in found["metadata"].items():
        print(f"  {name} = {_short(value)}")
    if options.tensors:
        for tensor in found["tensors"]:
            shape = " x ".join(str(n) for n in tensor["shape"])
            print(f"  {tensor['name']:48} {tensor['type']:8} {shape}")
    return 0


def describe(path: Path) -> dict[str, Any]:
    """Format, spec, metadata and tensors of a model, read by the validating readers only."""
    if path.is_dir() and not (path / "genai_config.json").is_file():
        return _describe_checkpoint(path)
    from wattwise_runtimes.artifact import open_artifact

    artifact = open_artifact(path)
    metadata, tensors = _gguf(path) if artifact.format == "gguf" else _onnx(path)
    return {
        "path": str(path),
        "format": artifact.format,
        "quant": artifact.quant,
        "parameters": artifact.spec.parameters(),
        "weights_bytes": artifact.weights_bytes,
        "spec": artifact.spec.to_json(),
        "metadata": metadata,
        "tensors": tensors,
    }


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    from wattwise_convert.sources import open_checkpoint

    checkpoint = open_checkpoint(path)
    tensors = [{"name": t.name, "type": t.dtype, "shape": t.shape} for t in checkpoint.tensors.values()]
    types = sorted({t["type"] for t in tensors})
    return {
        "path": str(path),
        "format": "hugging face",
        "quant": "/".join(types),
        "parameters": checkpoint.spec.parameters(),
        "weights_bytes": sum(file.stat().st_size for file in checkpoint.files if file.suffix == ".safetensors"),
        "spec": checkpoint.spec.to_json(),
        "metadata": {},
        "tensors": tensors,
    }


def _gguf(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from wattwise_runtimes.formats.gguf import read_gguf

    file = read_gguf(path)
    metadata = {k: _plain(v) for k, v in file.fields.items()}
    tensors = [{"name": t.name, "type": t.type, "shape": t.shape, "bytes": t.nbytes} for t in file.tensors.values()]
    return metadata, tensors


def _onnx(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from wattwise_runtimes.formats.onnx_file import check_onnx_folder

    folder = check_onnx_folder(path)
    metadata = {"genai_config": folder.genai_config, "ir_version": folder.model.ir_version}
    tensors = [
        {"name": name, "type": str(t.dtype), "shape": t.shape, "bytes": t.nbytes}
        for name, t in folder.model.initializers.items()
    ]
    return metadata, tensors


def _plain(value: Any) -> Any:
    """Arrays of metadata as their length and beginning: a vocabulary does not belong on a screen."""
    if isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
        return {"count": len(value), "first": [v.item() if hasattr(v, "item") else v for v in value[:4]]}
    return value


def _short(value: Any) -> str:
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters)"
