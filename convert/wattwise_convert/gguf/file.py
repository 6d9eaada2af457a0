"""Writes one GGUF file from one checkpoint, whole or not at all, and checks it before it gets its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wattwise_convert.checkpoint import Checkpoint
from wattwise_convert.export_result import ExportResult
from wattwise_convert.gguf.arch import arch_for
from wattwise_convert.gguf.fields import fields_for
from wattwise_convert.gguf.lower import lower
from wattwise_convert.gguf.types import NATIVE, canonical_name, is_head, main_type
from wattwise_convert.gguf.writer import OutTensor, write_gguf
from wattwise_convert.progress import OnProgress, Progress
from wattwise_devices.errors import ConvertError
from wattwise_runtimes.formats.atomic import atomic_file, scratch_file
from wattwise_runtimes.formats.gguf import GGUFTensor, read_gguf
from wattwise_runtimes.formats.gguf_llama import validate_for_llama
from wattwise_runtimes.formats.gguf_spec import FILE_TYPE_BY_NAME
from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME


def export(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    quant: str = "f16",
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> ExportResult:
    """Write a GGUF file that llama.cpp and our own engines read.

    quant: a name of `types.QUANTS`; q4_k_m and other names that only libllama writes need llama-cpp-python.
    on_progress: gets 0..1, may return False to stop.
    """
    path, quant = Path(path), canonical_name(quant)
    progress = Progress(on_progress)
    try:
        with atomic_file(path, overwrite=overwrite) as partial:
            if quant in NATIVE:
                write_native(checkpoint, partial, quant, progress)
            else:
                from wattwise_convert.gguf.libllama import dense_type, quantise

                with scratch_file(path) as dense:
                    write_native(checkpoint, dense, dense_type(checkpoint), progress.stage(0.0, 0.4))
                    validate_for_llama(read_gguf(dense))
                    quantise(dense, partial, quant, checkpoint.spec.parameters(), progress.stage(0.4, 1.0))
            validate_for_llama(read_gguf(partial))
            notes = _notes(partial, quant, checkpoint.spec.tied_head)
    except FileExistsError as error:
        raise ConvertError(str(error)) from None
    return ExportResult(path=path, files=(path,), bytes=path.stat().st_size, notes=notes)


def write_native(checkpoint: Checkpoint, path: Path, quant: str, progress: Progress) -> None:
    """The file in one of the types that are written here, not yet checked."""
    arch = arch_for(checkpoint.spec)
    _check_tensors(checkpoint)
    tensors: Sequence[OutTensor] = lower(checkpoint, arch, quant)
    write_gguf(path, fields_for(checkpoint, arch, FILE_TYPE_BY_NAME[quant]), tensors, progress)


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Exactly the tensors that the spec names, with its shapes."""
    wanted = checkpoint.spec.tensor_shapes()
    for name, shape in wanted.items():
        if name not in checkpoint.tensors:
            raise ConvertError(f"{checkpoint.origin}: the tensor {name!r} of shape {shape} is missing")
        if checkpoint.tensors[name].shape != shape:
            raise ConvertError(
                f"{checkpoint.origin}: tensor {name!r} has shape {checkpoint.tensors[name].shape}, expected {shape}"
            )
    extra = set(checkpoint.tensors) - set(wanted)
    if extra:
        raise ConvertError(f"{checkpoint.origin}: the tensor {min(extra)!r} has no place in this architecture")


def _notes(path: Path, quant: str, tied: bool) -> tuple[str, ...]:
    """What is stored in another type than the name says, from the file itself."""
    main = main_type(quant)
    other: dict[tuple[str, str], list[str]] = {}
    for tensor in read_gguf(path).tensors.values():
        if len(tensor.shape) == 2 and tensor.type != main and tensor.name != "position_embd.weight":
            other.setdefault((tensor.type, _reason(tensor, main, tied)), []).append(tensor.name)
    notes: list[str] = []
    for (kind, reason), names in other.items():
        shown = ", ".join(f"{stem} x {count}" if count > 1 else stem for stem, count in _stems(names).items())
        notes.append(f"stored as {kind} instead of {main}: {shown} ({reason})")
    return tuple(notes)


def _stems(names: Sequence[str]) -> Counter[str]:
    """Tensor names without their layer, counted."""
    return Counter(name.split(".", 2)[2] if name.startswith("blk.") else name for name in names)


def _reason(tensor: GGUFTensor, main: str, tied: bool) -> str:
    block = TYPE_BY_NAME[main].block
    if tensor.shape[-1] % block:
        return f"rows of {tensor.shape[-1]} are no multiple of {block}"
    if is_head(tensor.name, tied):
        return "it makes the logits, where errors cost most"
    return "part of this mixture of types"
