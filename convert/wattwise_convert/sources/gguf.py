"""GGUF files as a source: whatever llama.cpp can run, for making another GGUF or an ONNX folder of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_runtimes.formats.gguf import read_gguf
from wattwise_runtimes.formats.gguf_llama import validate_for_llama
from wattwise_runtimes.formats.gguf_spec import canonical_tensors, spec_from_gguf


def claims(path: Path) -> bool:
    """Whether this is such a file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF" or path.suffix == ".gguf"


def open_source(path: Path) -> Checkpoint:
    """The checkpoint in the file."""
    from wattwise_runtimes.text.gguf_vocab import has_vocabulary, vocabulary_from_gguf
    from wattwise_runtimes.text.tokenizer import Tokenizer

    file = read_gguf(path)
    validate_for_llama(file)  # refuses keys and tensors whose meaning is not known
    spec = spec_from_gguf(file)
    tensors = {
        name: TensorSource(name, t.shape, t.dtype, t.read_rows) for name, t in canonical_tensors(file, spec).items()
    }
    tokenizer = Tokenizer(vocabulary_from_gguf(file.fields, path)) if has_vocabulary(file.fields) else None
    if tokenizer is not None:  # tokens that end a reply by their name alone
        ends = dict.fromkeys((*spec.eos_ids, *sorted(tokenizer.eog_ids)))
        spec = dataclasses.replace(spec, eos_ids=tuple(ends))
    return Checkpoint(spec=spec, tensors=tensors, tokenizer=tokenizer, origin=path, files=file.parts)
