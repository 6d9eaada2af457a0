"""Writes one ONNX folder from one checkpoint, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from wattwise_convert.checkpoint import Checkpoint
from wattwise_convert.export_result import ExportResult
from wattwise_convert.onnx.companions import DATA_NAME, MODEL_NAME, write_companions
from wattwise_convert.onnx.data_file import DataFile
from wattwise_convert.onnx.graph import Graph
from wattwise_convert.onnx.lower import Lowering
from wattwise_convert.onnx.quantize import BLOCKS
from wattwise_convert.onnx.weights import Storage, Weights
from wattwise_devices.errors import ConvertError
from wattwise_runtimes.formats.atomic import atomic_folder

QUANTS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int2": 2}
# 2-bit kernels with int8 activations do not exist for these blocks; they would run 100 times slower.
_SLOW_INT2_BLOCKS = (16, 256)


def export(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    quant: str = "int4",
    block: int = 32,
    head_bits: int | None = None,
    zero_points: bool = False,
    context: int | None = None,
    overwrite: bool = False,
    on_progress: Callable[[float], bool | None] | None = None,
) -> ExportResult:
    """Write `folder`, which onnxruntime-genai and our own engine read.

    quant: fp32, fp16 (stored; computed in float32), int8, int4 or int2. block: weights per scale.
    head_bits: of embedding and head; 8 for int2 and int4 unless said otherwise (they cost the most quality).
    zero_points: asymmetric blocks, a little more exact, larger and slower. context: that genai allocates for.
    on_progress: gets 0..1, may return False to stop. Raises FileExistsError if the folder is there.
    """
    if checkpoint.spec.head_dim % 8:
        raise ConvertError(
            f"onnxruntime's attention wants a head size that is a multiple of 8; this model has "
            f"{checkpoint.spec.head_dim}. Convert it to GGUF instead."
        )
    storage = _storage(quant, block, head_bits, zero_points)
    wanted = checkpoint.spec.context if context is None else context
    with atomic_folder(Path(folder), overwrite=overwrite) as partial:
        notes = _write(checkpoint, partial, storage, wanted, quant, on_progress)
    files = tuple(sorted(Path(folder).iterdir()))
    return ExportResult(path=Path(folder), files=files, bytes=sum(f.stat().st_size for f in files), notes=notes)


def _storage(quant: str, block: int, head_bits: int | None, zero_points: bool) -> Storage:
    bits = QUANTS.get(quant)
    if bits is None:
        raise ConvertError(f"ONNX weights cannot be stored as {quant!r}; there are: {', '.join(QUANTS)}")
    if bits <= 8 and block not in BLOCKS:
        raise ConvertError(f"block {block} is not one that MatMulNBits has; take one of {BLOCKS}")
    if 2 in (bits, head_bits) and block in _SLOW_INT2_BLOCKS:
        raise ConvertError(f"int2 with block {block} has no fast kernel; take a block of 32, 64 or 128")
    if head_bits is None:
        head_bits = 8 if bits <= 4 else bits
    if head_bits not in QUANTS.values():
        raise ConvertError(f"head_bits is {head_bits}; there are: {sorted(QUANTS.values())}")
    return Storage(bits=bits, head_bits=head_bits, block=block, zero_points=zero_points)


def _write(
    checkpoint: Checkpoint,
    folder: Path,
    storage: Storage,
    context: int,
    quant: str,
    on_progress: Callable[[float], bool | None] | None,
) -> tuple[str, ...]:
    version = metadata.version("wattwise")
    done, expected = 0, max(1, _expected_bytes(checkpoint, storage))

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None and on_progress(min(1.0, done / expected)) is False:
            raise ConvertError("the conversion was stopped")

    graph = Graph()
    with DataFile(folder / DATA_NAME, wrote) as data:
        weights = Weights(checkpoint, graph, data, storage)
        Lowering(checkpoint.spec, graph, weights, context=context).build()
    (folder / MODEL_NAME).write_bytes(graph.model(version).SerializeToString())
    write_companions(checkpoint, folder, context=context, quant=quant, version=version)
    return tuple(weights.notes)


def _expected_bytes(checkpoint: Checkpoint, storage: Storage) -> int:
    total = 0.0
    for name, shape in checkpoint.spec.tensor_shapes().items():
        if len(shape) == 2:
            bits = storage.of(name)
            per_weight = bits / 8 if bits > 8 else bits / 8 + 4 / storage.block
            total += shape[0] * shape[1] * per_weight
    return int(total)
