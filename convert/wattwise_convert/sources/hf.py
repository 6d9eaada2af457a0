"""Hugging Face folders: config.json, safetensors (also sharded), tokenizer, generation_config.json.

The architecture file says what the config means and where each weight lies; here every tensor of the folder is
accounted for: used, known to carry nothing, or refused by name.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from wattwise_convert import archs
from wattwise_convert.archs._common import Places
from wattwise_convert.archs._config import Config
from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_convert.sources._reading import WEIGHT_TYPES, source_of
from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.formats.json_file import read_json_object
from wattwise_runtimes.formats.safetensors import SafetensorsFile, open_folder
from wattwise_runtimes.spec import ModelSpec
from wattwise_runtimes.text.tokenizer import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TEXT_FILES = (
    "config.json", "generation_config.json", *TOKENIZER_FILES, "merges.txt", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
_PREFIXES = ("model.", "", "transformer.", "language_model.model.", "model.language_model.")
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "vision_model.")  # of models that also see
_NO_WEIGHTS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # recomputed: frequencies and masks


def claims(path: Path) -> bool:
    """Whether this is a model folder."""
    return path.is_dir() and (path / "config.json").is_file()


def open_source(folder: Path) -> Checkpoint:
    """The checkpoint in a folder."""
    config = _text_part(Config(read_json_object(folder / "config.json"), folder / "config.json"))
    architecture = archs.find(config.get("model_type"), config.path)
    spec = architecture.spec(config)
    weights = open_folder(folder)
    tensors = _tensors(weights, spec, architecture.places(spec))
    tokenizer = _tokenizer(folder)
    spec = _with_text(spec, folder, tokenizer)
    texts = tuple(folder / name for name in _TEXT_FILES if (folder / name).is_file())
    return Checkpoint(spec=spec, tensors=tensors, tokenizer=tokenizer, origin=folder, files=texts + weights.files)


def spec_of_config(path: Path) -> ModelSpec:
    """What a config.json describes, without weights or tokenizer."""
    config = _text_part(Config(read_json_object(path), path))
    return archs.find(config.get("model_type"), path).spec(config)


def _text_part(config: Config) -> Config:
    """The language model's settings, where the file wraps them (Gemma 3 with images)."""
    text = config.part("text_config")
    if text is None:
        return config
    if config.get("model_type") != "gemma3":
        raise config.unsupported("text_config", config.get("model_type"), "known inside a gemma3 model only")
    shared = {
        k: config.values[k] for k in ("eos_token_id", "bos_token_id", "tie_word_embeddings") if k in config.values
    }
    return Config(shared | {"model_type": "gemma3_text"} | dict(text.values), config.path, "text_config.")


def _tensors(weights: SafetensorsFile, spec: ModelSpec, places: Places) -> dict[str, TensorSource]:
    prefix = _prefix(weights, places["token_embd.weight"].name)
    unused = {name for name in weights.tensors if not _carries_nothing(name)}
    found: dict[str, TensorSource] = {}
    for name, shape in spec.tensor_shapes().items():
        place = places[name]
        stored = _stored_name(weights, prefix, place.name)
        if stored is None:
            raise CorruptArtifact(
                weights.path, f"tensor {prefix + place.name!r}", "missing", f"{name} of shape {shape}"
            )
        found[name] = source_of(weights, stored, place, name, shape)
        unused.discard(stored)
    head = _stored_name(weights, prefix, "lm_head.weight")
    if spec.tied_head and head in unused:
        _check_tied(weights, head, found["token_embd.weight"])
        unused.discard(head)
    if unused:
        raise UnsupportedArchitecture(
            f"{weights.path}: the tensor {min(unused)!r} ({len(unused)} in all) is not known for architecture "
            f"{spec.architecture!r}; leaving it out would change the model."
        )
    return found


def _prefix(weights: SafetensorsFile, embedding: str) -> str:
    """What stands before the names in this file."""
    for prefix in _PREFIXES:
        if prefix + embedding in weights.tensors:
            return prefix
    raise CorruptArtifact(weights.path, f"tensor {_PREFIXES[0] + embedding!r}", "missing", "present")


def _stored_name(weights: SafetensorsFile, prefix: str, name: str) -> str | None:
    """The tensor's name in the file; the head stands outside the part that has the prefix."""
    candidates = [prefix + name]
    if name.startswith("lm_head."):
        candidates = [name, "language_model." + name, prefix + name]
    return next((c for c in candidates if c in weights.tensors), None)


def _carries_nothing(name: str) -> bool:
    if any(name.startswith((part, "model." + part)) for part in _OTHER_PARTS):
        return True
    return any(name.endswith(end) for end in _NO_WEIGHTS)


def _check_tied(weights: SafetensorsFile, head: str, embedding: TensorSource) -> None:
    """A head in the file beside `tie_word_embeddings` must be the embedding itself. Compares rows all over it."""
    info = weights.tensors[head]
    if info.shape != embedding.shape or info.dtype not in WEIGHT_TYPES:
        raise CorruptArtifact(weights.path, f"shape of tensor {head!r}", info.shape, f"{embedding.shape} (tied)")
    for row in sorted({int(r) for r in np.linspace(0, info.shape[0] - 1, 64)}):
        if not np.array_equal(weights.read_rows(head, row, row + 1), embedding.read(row, row + 1), equal_nan=True):
            raise CorruptArtifact(
                weights.path, f"row {row} of tensor {head!r}", "not the embedding's",
                "equal to it, because config.json says tie_word_embeddings",
            )  # fmt: skip


def _tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; None where it has no file of one."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    from wattwise_runtimes.text.sources import load_tokenizer

    return load_tokenizer(folder)


def _with_text(spec: ModelSpec, folder: Path, tokenizer: Tokenizer | None) -> ModelSpec:
    """The spec with what tokenizer and generation settings add: every end of a reply, BOS, the template."""
    changes: dict[str, Any] = {"name": folder.resolve().name}
    path = folder / "generation_config.json"
    ends = list(spec.eos_ids)
    if path.is_file():
        ends += Config(read_json_object(path), path).token_ids("eos_token_id", spec.vocab)
    if tokenizer is not None:
        if tokenizer.vocab_size > spec.vocab:
            raise CorruptArtifact(folder, "tokens of the tokenizer", tokenizer.vocab_size, f"at most {spec.vocab}")
        ends += sorted(tokenizer.eog_ids)
        changes |= {"add_bos": tokenizer.add_bos, "chat_template": tokenizer.chat_template}
        if tokenizer.bos_id is not None:
            changes["bos_id"] = tokenizer.bos_id
        if spec.pad_id is None:
            changes["pad_id"] = tokenizer.vocabulary.pad_id
    return dataclasses.replace(spec, eos_ids=tuple(dict.fromkeys(ends)), **changes)
