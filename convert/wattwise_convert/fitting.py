"""`convert --fit SIZE`: the finest weight type whose file is no larger than a size.

A bigger model at fewer bits beats a smaller one at more (Train Large, Then Compress, arXiv:2002.11794), but below four
bits quality falls off, so such a choice is noted. Sizes are predicted to skip what is hopeless, and the finished file
is measured: what is handed over fits.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

from wattwise_convert.api import ConvertResult, convert
from wattwise_convert.gguf.types import LLAMA_TYPES
from wattwise_convert.sources import open_checkpoint
from wattwise_devices.errors import BackendUnavailable, ConvertError

# From the finest to the coarsest, with the bits of a weight in a matrix, scales included.
GGUF_LADDER: dict[str, float] = {
    "f16": 16.0, "q8_0": 8.5, **{name: LLAMA_TYPES[name].bits for name in ("q6_k", "q5_k_m", "q4_k_m")}, "q4_0": 4.5,
    **{name: LLAMA_TYPES[name].bits for name in ("q3_k_m", "q2_k")},
}  # fmt: skip
ONNX_LADDER: dict[str, float] = {"fp16": 16.0, "int8": 8.5, "int4": 4.5, "int2": 2.5}
_ROUGH = 0.9  # a prediction may be this much too high: mixed files are lighter than their name in places
_FEW_BITS = 4.0


def convert_to_fit(
    source: Path,
    destination: Path,
    size_bytes: int,
    *,
    to: str | None = None,
    block: int | None = None,
    certify: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[float], object] | None = None,
) -> tuple[ConvertResult, str]:
    """Convert with the finest type that fits; the result and the type's name.

    Raises ConvertError, naming the smallest size that was reached, if even the coarsest is too large.
    """
    form = to or ("gguf" if destination.suffix == ".gguf" else "onnx")
    checkpoint = open_checkpoint(source)
    smallest = math.inf
    for quant, bits in (GGUF_LADDER if form == "gguf" else ONNX_LADDER).items():
        predicted = checkpoint.spec.parameters() * bits / 8
        if _ROUGH * predicted > size_bytes:
            smallest = min(smallest, predicted)
            continue
        try:
            result = convert(
                checkpoint, destination, to=form, quant=quant, block=block, certify=certify, overwrite=overwrite,
                on_progress=on_progress,
            )  # fmt: skip
        except (ConvertError, BackendUnavailable):
            if destination.exists() and not overwrite:
                raise
            continue  # this model cannot have the type (row lengths), or libllama is not here: the next one
        if result.bytes <= size_bytes:
            return _noted(result, quant, bits), quant
        smallest = min(smallest, result.bytes)
        _remove(result)
    reached = "no type could be written" if smallest is math.inf else f"the smallest comes to {smallest / 1e6:.1f} MB"
    raise ConvertError(
        f"{checkpoint.spec.name or source} does not fit {size_bytes / 1e6:.1f} MB as {form}: {reached}. "
        "Allow more, or choose a smaller model."
    )


def _noted(result: ConvertResult, quant: str, bits: float) -> ConvertResult:
    if bits >= _FEW_BITS:
        return result
    import dataclasses

    warning = f"{quant} keeps under {_FEW_BITS:.0f} bits a weight: expect clearly worse text; evaluate it before use"
    return dataclasses.replace(result, notes=(*result.notes, warning))


def _remove(result: ConvertResult) -> None:
    if result.path.is_dir():
        shutil.rmtree(result.path)
    for file in result.files:
        file.unlink(missing_ok=True)
