"""The certificate of a conversion: what was made from what, how far it is from its source, and what is wrong with it.

Written beside a GGUF file (`model.gguf.certificate.json`) or into an ONNX folder (`certificate.json`). `problems` is
empty for a sound conversion; quantisation error is reported, not judged, because only its user knows what is enough.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from wattwise_convert import verify
from wattwise_convert.checkpoint import Checkpoint
from wattwise_convert.progress import OnProgress, Progress
from wattwise_convert.verify import LogitAgreement, TensorError
from wattwise_convert.written import read_written
from wattwise_runtimes.formats.atomic import write_file_atomically
from wattwise_runtimes.text.tokenizer import Tokenizer

FOLDER_NAME = "certificate.json"
FORMAT_VERSION = 1
# Largest relative RMS error of types that round single numbers: half a unit in their last place, and a little.
_ROUNDING = {"f32": 1e-6, "f16": 5e-4, "bf16": 4e-3}
_TENSOR_SHARE, _HASH_SHARE = 0.5, 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHash:
    """One file that was read or written."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was measured. template_sha256: of a fixed conversation in the written file's chat template."""

    path: Path
    source: str
    source_files: tuple[FileHash, ...]
    written_files: tuple[FileHash, ...]
    tensors: tuple[TensorError, ...]
    logits: LogitAgreement
    tokenizer: str
    template_sha256: str | None
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data: the file's content."""
        return {
            "certificate": FORMAT_VERSION,
            "wattwise": metadata.version("wattwise"),
            "source": self.source,
            "source_files": [dataclasses.asdict(file) for file in self.source_files],
            "written_files": [dataclasses.asdict(file) for file in self.written_files],
            "logits": dataclasses.asdict(self.logits),
            "tokenizer": self.tokenizer,
            "template_sha256": self.template_sha256,
            "tensors": [dataclasses.asdict(tensor) for tensor in self.tensors],
            "notes": list(self.notes),
            "problems": list(self.problems),
        }

    def __str__(self) -> str:
        agreement = self.logits
        worst = max(self.tensors, key=lambda tensor: tensor.relative_rms)
        lines = [
            f"certificate: {self.path}",
            f"  {len(self.tensors)} tensors; largest error {worst.relative_rms:.2%} of {worst.name} ({worst.type})",
            f"  {agreement.tokens} tokens on {agreement.engine}: KL divergence {agreement.kl_mean:.3g} nats (largest "
            f"{agreement.kl_max:.3g}), first choice equal {agreement.top1:.1%}, "
            f"{agreement.written_nats:.4f} nats per token (source {agreement.source_nats:.4f})",
            f"  tokenizer: {self.tokenizer}",
        ]
        lines += [f"  PROBLEM: {problem}" for problem in self.problems]
        return "\n".join(lines)


def certificate_path(target: Path, form: str) -> Path:
    """Where the certificate of an output stands."""
    return target.with_name(target.name + "." + FOLDER_NAME) if form == "gguf" else target / FOLDER_NAME


def certify(
    checkpoint: Checkpoint, target: Path, form: str, notes: tuple[str, ...] = (), on_progress: OnProgress | None = None
) -> Certificate:
    """Measure the finished output against its source and write the certificate."""
    progress = Progress(on_progress)
    spec, written = read_written(target, form)
    problems = [f"the written file says {difference}" for difference in verify.spec_differences(checkpoint.spec, spec)]
    tensors = verify.tensor_errors(checkpoint, written, spec, progress.stage(0.0, _TENSOR_SHARE))
    problems += _rounding_problems(tensors)
    files = _files(checkpoint.origin) if not checkpoint.files else list(checkpoint.files)
    outputs = [target] if form == "gguf" else [f for f in _files(target) if f.name != FOLDER_NAME]
    hashes = _hashes([*files, *outputs], progress.stage(_TENSOR_SHARE, _HASH_SHARE))
    logits = verify.logit_agreement(checkpoint, target, form, spec, written)
    if not logits.kl_mean < float("inf"):
        problems.append(f"the written model's logits are not numbers (KL divergence {logits.kl_mean})")
    tokenizer, template, text_problems = _texts(checkpoint.tokenizer, target)
    certificate = Certificate(
        path=certificate_path(target, form),
        source=str(checkpoint.origin),
        source_files=tuple(hashes[: len(files)]),
        written_files=tuple(hashes[len(files) :]),
        tensors=tuple(tensors),
        logits=logits,
        tokenizer=tokenizer,
        template_sha256=template,
        notes=notes,
        problems=(*problems, *text_problems),
    )
    write_file_atomically(certificate.path, json.dumps(certificate.to_json(), indent=1).encode())
    progress.expect(1)
    progress.add(1)
    return certificate


def _rounding_problems(tensors: list[TensorError]) -> list[str]:
    problems: list[str] = []
    for tensor in tensors:
        limit = _ROUNDING.get(tensor.type)
        if not tensor.relative_rms < float("inf"):
            problems.append(f"{tensor.name}: the error is not a number")
        elif limit is not None and tensor.relative_rms > limit:
            problems.append(f"{tensor.name}: error {tensor.relative_rms:.3g}, more than rounding to {tensor.type}")
    return problems


def _texts(source: Tokenizer | None, target: Path) -> tuple[str, str | None, list[str]]:
    """(words on the tokenizer, hash of the rendered template, problems)."""
    if source is None:
        return "none: ids only", None, []
    from wattwise_runtimes.text.sources import load_tokenizer

    written = load_tokenizer(target)
    differences = verify.tokenizer_differences(source, written)
    problems = [f"tokenizer: {difference}" for difference in differences]
    words = f"{len(differences)} texts encoded differently" if differences else "same ids and texts as the source"
    if source.chat_template is None and written.chat_template is None:
        return words, None, problems
    renderings = [verify.render_template(tokenizer) for tokenizer in (source, written)]
    if renderings[0] != renderings[1]:
        problems.append("the chat template renders a conversation differently")
    return words, hashlib.sha256(renderings[1].encode()).hexdigest(), problems


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    return [path] if path.is_file() else []


def _hashes(files: list[Path], progress: Progress) -> list[FileHash]:
    progress.expect(sum(file.stat().st_size for file in files))
    return [_hash(file, progress) for file in files]


def _hash(path: Path, progress: Progress) -> FileHash:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
            progress.add(len(block))
    return FileHash(name=path.name, bytes=size, sha256=digest.hexdigest())
