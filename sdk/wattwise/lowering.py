"""A GGUF file for the ONNX engine: lowered once by the converter, kept in the cache, found again by content.

The conversion runs in a child process, so that its memory is not part of the process whose budget was planned. The one
place where the SDK reaches over to the converter; imported only when it is needed.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

from wattwise.paths import cache_dir
from wattwise_devices.errors import ConvertError
from wattwise_runtimes.contracts import Artifact
from wattwise_runtimes.spec import ModelSpec
from wattwise_runtimes.synthetic import random_rows

# The weight type that holds the GGUF's own values exactly or nearest, by commonest type of the file.
_QUANT = {"f32": "fp32", "bf16": "fp32", "f16": "fp16", "q8_0": "int8", "q6_k": "int8", "q5_0": "int8", "q5_1": "int8"}

_LOSSLESS = ("f32", "f16", "q8_0", "q4_0")  # among them, the types whose every value the ONNX folder holds


def onnx_folder_for(artifact: Artifact, on_progress: Callable[[float], object] | None = None) -> Path:
    """The ONNX folder that corresponds to a GGUF artifact; made on first use.

    on_progress gets 0..1 and may return False to stop. Raises ConvertError, also when it was stopped.
    """
    folder = _folder_of(artifact)
    if not (folder / "genai_config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _lower_in_child(artifact.path, folder, _QUANT.get(artifact.quant, "int4"), on_progress)
    return folder


def existing_onnx_folder(artifact: Artifact) -> Path | None:
    """The ONNX folder that was made from this GGUF before, if it holds the same values; makes nothing."""
    folders = cache_dir() / "lowered"
    if artifact.quant not in _LOSSLESS or not folders.is_dir() or not any(folders.iterdir()):
        return None
    folder = _folder_of(artifact)
    return folder if (folder / "genai_config.json").is_file() else None


def _folder_of(artifact: Artifact) -> Path:
    """Where the ONNX folder of this file lies, whether it is there or not: by content."""
    from wattwise import __version__

    digest = hashlib.sha256(__version__.encode())
    with artifact.path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return cache_dir() / "lowered" / digest.hexdigest()[:32]


def write_synthetic_onnx(spec: ModelSpec, weight_type: str, folder: Path) -> Artifact:
    """A synthetic model (see `wattwise_runtimes.synthetic`) as an ONNX folder below `folder`."""
    import numpy as np

    from wattwise_convert.checkpoint import Checkpoint, TensorSource
    from wattwise_convert.onnx import export
    from wattwise_runtimes.artifact import open_artifact

    def source(name: str, shape: tuple[int, ...]) -> TensorSource:
        if len(shape) == 1:
            return TensorSource(name, shape, "f32", lambda start, stop: np.ones(stop - start, np.float32))
        # No two tensors alike: onnxruntime keeps equal ones once, and would then read less than a real model does.
        rows = np.roll(random_rows(shape[1]), zlib.crc32(name.encode()) % (shape[1] * 64))
        return TensorSource(name, shape, "f32", lambda start, stop: np.resize(rows, (stop - start, shape[1])))

    tensors = {name: source(name, shape) for name, shape in spec.tensor_shapes().items()}
    target = folder / f"{spec.name}-{spec.hidden}x{spec.layers}-{weight_type}"
    export(Checkpoint(spec=spec, tensors=tensors, tokenizer=None, origin=folder), target, quant=weight_type)
    return open_artifact(target)


def _lower_in_child(source: Path, folder: Path, quant: str, on_progress: Callable[[float], object] | None) -> None:
    command = [sys.executable, "-m", "wattwise.lowering", str(source), str(folder), quant]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            for line in child.stdout or ():
                if on_progress is not None and on_progress(float(line)) is False:
                    raise ConvertError(f"lowering {source} to ONNX was stopped")
            problem = child.stderr.read() if child.stderr is not None else ""
        except BaseException:  # stopped, or Ctrl-C
            child.send_signal(signal.SIGINT)  # so that the converter removes what it has begun
            raise
    if child.returncode != 0:
        last = (problem.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise ConvertError(f"{source} could not be lowered to ONNX: {last}")


def _child(source: Path, folder: Path, quant: str) -> None:
    from wattwise_convert.api import convert

    def tell(fraction: float) -> None:
        sys.stdout.write(f"{fraction:.4f}\n")
        sys.stdout.flush()

    convert(source, folder, to="onnx", quant=quant, block=32, on_progress=tell)


if __name__ == "__main__":
    _child(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
