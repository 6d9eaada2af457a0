"""A GGUF file for the ONNX engine: lowered once by the converter, kept in the cache, found again by content.

The one place where the SDK reaches over to the converter; imported only when it is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from wattwise.paths import cache_dir
from wattwise_runtimes.contracts import Artifact

# The weight type that holds the GGUF's own values exactly or nearest, by commonest type of the file.
_QUANT = {"f32": "fp32", "bf16": "fp32", "f16": "fp16", "q8_0": "int8", "q6_k": "int8", "q5_0": "int8", "q5_1": "int8"}


def onnx_folder_for(artifact: Artifact, on_progress: Callable[[float], object] | None = None) -> Path:
    """The ONNX folder that corresponds to a GGUF artifact; made on first use."""
    from wattwise import __version__

    digest = hashlib.sha256(__version__.encode())
    with artifact.path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    folder = cache_dir() / "lowered" / digest.hexdigest()[:32]
    if (folder / "genai_config.json").is_file():
        return folder
    from wattwise_convert.api import convert

    folder.parent.mkdir(parents=True, exist_ok=True)
    quant = _QUANT.get(artifact.quant, "int4")
    convert(artifact.path, folder, to="onnx", quant=quant, block=32, on_progress=on_progress)
    return folder
