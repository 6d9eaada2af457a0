"""The vocabulary in a GGUF file's metadata: what llama.cpp would assert about it, checked first.

Token texts must differ from each other as C strings (llama.cpp asserts it), lists must have one entry per token and
the types that it reads without asking, ids must name tokens.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.formats.gguf import GGUFFile

MODELS = ("llama", "gpt2", "no_vocab", "none")
MAX_TOKEN_BYTES = 1 << 16
_IDS = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask", "fim_pre", "fim_suf", "fim_mid",
        "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle")  # fmt: skip
_FLAGS = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_BYTE = 6  # token type


def check_vocabulary_fields(file: GGUFFile, arch: str) -> int:
    """Check the tokenizer.* fields and give the number of tokens."""
    model = _field(file, "tokenizer.ggml.model", "string")
    if model not in MODELS:
        raise UnsupportedArchitecture(f"{file.path}: tokenizer {model!r} is not known; known are {', '.join(MODELS)}.")
    if model in ("no_vocab", "none"):
        return _field(file, f"{arch}.vocab_size", "uint32")
    tokens: list[str] = _field(file, "tokenizer.ggml.tokens", "array[string]")
    _check_tokens(file, tokens)
    claimed = file.fields.get(f"{arch}.vocab_size", len(tokens))
    if claimed != len(tokens):
        raise CorruptArtifact(file.path, f"'{arch}.vocab_size'", claimed, f"{len(tokens)}, the number of tokens")
    _check_lists(file, tokens)
    if model == "gpt2":
        _check_merges(file)
    _check_ids_and_flags(file, len(tokens))
    return len(tokens)


def _field(file: GGUFFile, key: str, kind: str) -> Any:
    if key not in file.fields:
        raise CorruptArtifact(file.path, repr(key), "missing", f"a field of type {kind}")
    if file.field_types[key] != kind:
        raise CorruptArtifact(file.path, f"type of {key!r}", file.field_types[key], kind)
    return file.fields[key]


def _check_tokens(file: GGUFFile, tokens: list[str]) -> None:
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        text = token or f"[EMPTY_{i}]"  # what llama.cpp puts in place of nothing
        if "\0" in text or len(text) > MAX_TOKEN_BYTES:
            raise CorruptArtifact(file.path, f"token {i}", text, f"no NUL, at most {MAX_TOKEN_BYTES} characters")
        if text in seen:
            raise CorruptArtifact(file.path, f"token {i}", text, f"different from token {seen[text]}")
        seen[text] = i
    if not tokens:
        raise CorruptArtifact(file.path, "'tokenizer.ggml.tokens'", "empty", "at least one token")


def _check_lists(file: GGUFFile, tokens: list[str]) -> None:
    for key, kinds in (("scores", ("array[float32]", "array[int32]")), ("token_type", ("array[int32]",))):
        full = f"tokenizer.ggml.{key}"
        if full not in file.fields:
            continue
        if file.field_types[full] not in kinds:
            raise CorruptArtifact(file.path, f"type of {full!r}", file.field_types[full], " or ".join(kinds))
        if len(file.fields[full]) != len(tokens):
            raise CorruptArtifact(file.path, f"items in {full!r}", len(file.fields[full]), f"{len(tokens)} (tokens)")
    types = np.asarray(file.fields.get("tokenizer.ggml.token_type", ()))
    if types.size and not (types.min() >= 0 and types.max() <= _BYTE):
        raise CorruptArtifact(file.path, "'tokenizer.ggml.token_type'", [int(types.min()), int(types.max())], "0 to 6")
    for i in np.flatnonzero(types == _BYTE):
        if not _BYTE_TOKEN.fullmatch(tokens[i]):
            raise CorruptArtifact(file.path, f"text of byte token {i}", tokens[i], "<0xNN>")


def _check_merges(file: GGUFFile) -> None:
    merges: list[str] = _field(file, "tokenizer.ggml.merges", "array[string]")
    for i, merge in enumerate(merges):
        if merge.find(" ", 1) < 1 or merge.endswith(" ") or "\0" in merge:
            raise CorruptArtifact(file.path, f"merge {i}", merge, "two parts with a space between")


def _check_ids_and_flags(file: GGUFFile, tokens: int) -> None:
    for name in _IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        if key in file.fields and _field(file, key, "uint32") >= tokens:
            raise CorruptArtifact(file.path, repr(key), file.fields[key], f"less than {tokens}, the number of tokens")
    for name in _FLAGS:
        key = f"tokenizer.ggml.{name}"
        if key in file.fields:
            _field(file, key, "bool")
    for side in ("bos", "eos"):
        if file.fields.get(f"tokenizer.ggml.add_{side}_token") and f"tokenizer.ggml.{side}_token_id" not in file.fields:
            raise CorruptArtifact(
                file.path, f"'tokenizer.ggml.{side}_token_id'", "missing", f"present: add_{side}_token is set"
            )
    for key in ("tokenizer.ggml.pre", "tokenizer.chat_template", "general.name"):
        if key in file.fields:
            _field(file, key, "string")
    key = "tokenizer.ggml.suppress_tokens"
    if key in file.fields:
        _field(file, key, "array[int32]")
