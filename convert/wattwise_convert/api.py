"""`convert(source, destination)`: the converter's one entry point.

Finds out what the source is and what the destination should be, refuses what cannot be done before anything is
written, converts, and on request certifies the result (`certificate`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattwise_convert.checkpoint import Checkpoint
from wattwise_convert.progress import OnProgress
from wattwise_devices.errors import ConvertError

if TYPE_CHECKING:
    from wattwise_convert.certificate import Certificate

FORMATS = ("gguf", "onnx")
_ONNX_DEFAULT = "int4"
_ONNX_BLOCK = 32
_CERTIFY_SHARE = 0.2  # of the progress range


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertResult:
    """What was written. notes: every place where a weight is stored in another way than asked for."""

    path: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    bytes: int
    certificate: Certificate | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "bytes": self.bytes,
            "notes": list(self.notes),
            "certificate": self.certificate.to_json() if self.certificate is not None else None,
        }


def convert(
    source: str | Path | Checkpoint,
    destination: str | Path,
    *,
    to: str | None = None,
    quant: str | None = None,
    block: int | None = None,
    certify: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> ConvertResult:
    """Make a GGUF file or an ONNX folder from any source that the converter reads.

    to: "gguf" or "onnx"; by default what the destination looks like (.gguf or not). quant: weight type; by default
    the source's own for GGUF (f16 where that is compressed) and int4 for ONNX. block: ONNX, weights that share a scale.
    on_progress: gets 0..1, may return False to stop; then, as after any error or Ctrl-C, nothing is left behind (while
    certifying: the finished model without a certificate).
    """
    target = Path(destination)
    form = _format(target, to)
    if block is not None and form == "gguf":
        raise ConvertError(f"block {block} was asked for, but a GGUF type has its own block size. Leave it out.")
    if not overwrite and (target.exists() or target.is_symlink()):
        raise ConvertError(f"{target} exists. Choose another place, or ask to overwrite it.")
    checkpoint = source if isinstance(source, Checkpoint) else _open(Path(source))
    _refuse_self(checkpoint, target)
    writing = _scaled(on_progress, 0.0, 1.0 - _CERTIFY_SHARE) if certify else on_progress
    result = _write(checkpoint, target, form, quant, block, overwrite, writing)
    from wattwise_convert.certificate import certificate_path
    from wattwise_convert.certificate import certify as make_certificate

    certificate_path(target, form).unlink(missing_ok=True)  # of what was overwritten
    if not certify:
        return result
    certificate = make_certificate(
        checkpoint, target, form, result.notes, on_progress=_scaled(on_progress, 1.0 - _CERTIFY_SHARE, 1.0)
    )
    return ConvertResult(
        path=result.path,
        files=(*result.files, certificate.path),
        notes=result.notes,
        bytes=result.bytes,
        certificate=certificate,
    )


def _format(target: Path, to: str | None) -> str:
    looks = "gguf" if target.suffix == ".gguf" else "onnx"
    if to is None:
        return looks
    if to not in FORMATS:
        raise ConvertError(f"there is no format {to!r}; there are: {', '.join(FORMATS)}")
    if to == "onnx" and looks == "gguf":
        raise ConvertError(f"an ONNX model is a folder; {target} has the name of a GGUF file")
    return to


def _open(path: Path) -> Checkpoint:
    from wattwise_convert.sources import open_checkpoint

    return open_checkpoint(path)


def _refuse_self(checkpoint: Checkpoint, target: Path) -> None:
    """The source is read while the target is written: they cannot be the same, nor one inside the other."""
    place = target.resolve()
    read = {checkpoint.origin.resolve(), *(file.resolve() for file in checkpoint.files)}
    if place in read or any(place in file.parents for file in read):
        raise ConvertError(f"{target} holds the source; choose another place to write to")


def _write(
    checkpoint: Checkpoint,
    target: Path,
    form: str,
    quant: str | None,
    block: int | None,
    overwrite: bool,
    on_progress: OnProgress | None,
) -> ConvertResult:
    if form == "gguf":
        from wattwise_convert import gguf

        wrote = gguf.export(
            checkpoint, target, quant=quant or gguf_quant_of(checkpoint), overwrite=overwrite, on_progress=on_progress
        )
        return ConvertResult(path=wrote.path, files=wrote.files, notes=wrote.notes, bytes=wrote.bytes)
    from wattwise_convert import onnx

    folder = onnx.export(
        checkpoint,
        target,
        quant=quant or _ONNX_DEFAULT,
        block=block if block is not None else _ONNX_BLOCK,
        overwrite=overwrite,
        on_progress=_plain(on_progress),
    )
    return ConvertResult(path=folder.path, files=folder.files, notes=folder.notes, bytes=folder.bytes)


def gguf_quant_of(checkpoint: Checkpoint) -> str:
    """The dense type that most weights of the source have; f16 for compressed sources."""
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        if len(tensor.shape) == 2:
            sizes[tensor.dtype] += tensor.shape[0] * tensor.shape[1]
    commonest = sizes.most_common(1)[0][0] if sizes else "f16"
    return commonest if commonest in ("f32", "f16", "bf16") else "f16"


def _scaled(report: OnProgress | None, start: float, stop: float) -> OnProgress | None:
    if report is None:
        return None
    return lambda share: report(start + share * (stop - start))


def _plain(report: OnProgress | None) -> Any:
    """The ONNX writer wants None or a bool back."""
    if report is None:
        return None
    return lambda share: False if report(share) is False else None
