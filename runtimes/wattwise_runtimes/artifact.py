"""Opens a model on disk: finds out what it is, validates it, and reads its ModelSpec. Loads no weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from wattwise_devices.errors import LoadError
from wattwise_runtimes.contracts import Artifact


def open_artifact(path: str | Path) -> Artifact:
    """The model at `path`, a .gguf file or an ONNX folder, validated by our own readers.

    Raises LoadError where there is no model, CorruptArtifact or UnsupportedArchitecture from the readers.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "genai_config.json").is_file():
            return _open_onnx(path)
        if (path / "config.json").is_file():
            raise LoadError(
                f"{path} is a Hugging Face folder; engines run GGUF files and ONNX folders. "
                f"Convert it first: wattwise convert {path} model.gguf"
            )
        raise LoadError(f"{path} is a folder without genai_config.json; an ONNX model folder has one")
    if not path.is_file():
        raise LoadError(f"there is no model at {path}")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return _open_gguf(path)
    if path.suffix == ".onnx":
        raise LoadError(f"{path} is one ONNX graph; give the folder that holds it and its genai_config.json")
    raise LoadError(f"{path} is neither a GGUF file (it starts with {magic!r}) nor an ONNX model folder")


def _open_gguf(path: Path) -> Artifact:
    from wattwise_runtimes.formats.gguf import read_gguf
    from wattwise_runtimes.formats.gguf_spec import spec_from_gguf

    file = read_gguf(path)
    by_type: Counter[str] = Counter()
    for tensor in file.tensors.values():
        by_type[tensor.type] += tensor.nbytes
    return Artifact(
        path=path,
        format="gguf",
        spec=spec_from_gguf(file),
        weights_bytes=sum(by_type.values()),
        quant=by_type.most_common(1)[0][0] if by_type else "",
    )


def _open_onnx(path: Path) -> Artifact:
    from wattwise_runtimes.formats.onnx_file import check_onnx_folder
    from wattwise_runtimes.formats.onnx_spec import onnx_quant, spec_from_onnx_folder

    folder = check_onnx_folder(path)
    # A tied head and its embedding are two initializers over the same bytes of the data file.
    places = {(t.location, t.offset) if t.location else t.name: t.nbytes for t in folder.model.initializers.values()}
    weights_bytes = sum(places.values())
    return Artifact(
        path=path,
        format="onnx",
        spec=spec_from_onnx_folder(path),
        weights_bytes=weights_bytes,
        quant=onnx_quant(folder),
    )
