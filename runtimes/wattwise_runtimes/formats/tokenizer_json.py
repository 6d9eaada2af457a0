"""tokenizer.json, checked before a tokenizer is made of it (by us or by the Rust `tokenizers` library).

Bounded JSON, whole and unique token ids, merges of known tokens, no padding to absurd lengths, no pattern or
replacement that blows a text up. The meaning of the parts is the text layer's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.formats.json_file import read_json

MAX_BYTES = 128 << 20
MAX_TOKENS = 1 << 22  # ids as well: tables are as long as the largest
MAX_TOKEN_CHARACTERS = 1 << 16
MAX_TEXT_CHARACTERS = 1 << 16  # of a pattern, a prefix or a replacement
MAX_PADDED_TOKENS = 1 << 20
MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")


def check_tokenizer_json(path: str | Path) -> dict[str, Any]:
    """The content of a tokenizer.json that is safe to hand to a tokenizer library."""
    path = Path(path)
    return check_tokenizer_data(read_json(path, MAX_BYTES), path)


def check_tokenizer_data(data: Any, path: Path) -> dict[str, Any]:
    """The same for JSON that was read from `path` already."""
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise CorruptArtifact(path, "'model'", type(data).__name__, "an object that describes the tokens")
    model = data["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)  # old files leave it out
    if kind not in MODELS:
        raise UnsupportedArchitecture(f"{path}: tokenizer model {kind!r} is not known; known are {', '.join(MODELS)}.")
    _check_vocab(path, model, kind)
    if kind == "BPE":
        _check_merges(path, model)
    _check_added(path, data.get("added_tokens"))
    _check_padding(path, data.get("padding"))
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for text in _texts(data.get(part)):
            if len(text) > MAX_TEXT_CHARACTERS and part != "normalizer":
                raise CorruptArtifact(path, f"a text in {part!r}", text, f"at most {MAX_TEXT_CHARACTERS} characters")
    return data


def _check_vocab(path: Path, model: dict[str, Any], kind: str) -> None:
    vocab = model.get("vocab")
    if kind == "Unigram":
        if not isinstance(vocab, list) or not all(_is_piece(item) for item in vocab):
            raise CorruptArtifact(path, "'model.vocab'", type(vocab).__name__, "a list of [text, score]")
        if not 1 <= len(vocab) <= MAX_TOKENS:
            raise CorruptArtifact(path, "number of tokens", len(vocab), f"1 to {MAX_TOKENS}")
        unknown = model.get("unk_id")
        if unknown is not None and (type(unknown) is not int or not 0 <= unknown < len(vocab)):
            raise CorruptArtifact(path, "'model.unk_id'", unknown, f"0 to {len(vocab) - 1}")
        return
    if not isinstance(vocab, dict):
        raise CorruptArtifact(path, "'model.vocab'", type(vocab).__name__, "an object of texts and ids")
    if not 1 <= len(vocab) <= MAX_TOKENS:
        raise CorruptArtifact(path, "number of tokens", len(vocab), f"1 to {MAX_TOKENS}")
    for token, number in vocab.items():
        if type(number) is not int or not 0 <= number < MAX_TOKENS:
            raise CorruptArtifact(path, f"id of token {token[:40]!r}", number, f"0 to {MAX_TOKENS - 1}")
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise CorruptArtifact(path, f"length of token {number}", len(token), f"at most {MAX_TOKEN_CHARACTERS}")
    if len(set(vocab.values())) != len(vocab):
        raise CorruptArtifact(path, "ids in 'model.vocab'", "not unique", "one token per id")


def _is_piece(item: Any) -> bool:
    return (
        isinstance(item, list)
        and len(item) == 2
        and isinstance(item[0], str)
        and len(item[0]) <= MAX_TOKEN_CHARACTERS
        and type(item[1]) in (int, float)
    )


def _check_merges(path: Path, model: dict[str, Any]) -> None:
    """Each merge joins two known tokens into a known one; written "left right" or ["left", "right"]."""
    merges, vocab = model.get("merges"), model["vocab"]
    if not isinstance(merges, list):
        raise CorruptArtifact(path, "'model.merges'", type(merges).__name__, "a list")
    continuing = model.get("continuing_subword_prefix") or ""
    if not isinstance(continuing, str):
        raise CorruptArtifact(path, "'model.continuing_subword_prefix'", continuing, "a text")
    prefix = len(continuing)
    for i, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
            raise CorruptArtifact(path, f"merge {i}", merge, "two texts")
        for text in (*parts, parts[0] + parts[1][prefix:]):
            if text not in vocab:
                raise CorruptArtifact(path, f"merge {i}", merge, f"known tokens ({text[:40]!r} is none)")


def _check_added(path: Path, added: Any) -> None:
    if added is None:
        return
    if not isinstance(added, list) or len(added) > MAX_TOKENS:
        raise CorruptArtifact(path, "'added_tokens'", type(added).__name__, f"a list of at most {MAX_TOKENS}")
    for i, token in enumerate(added):
        number = token.get("id") if isinstance(token, dict) else None
        content = token.get("content") if isinstance(token, dict) else None
        if type(number) is not int or not 0 <= number < MAX_TOKENS:
            raise CorruptArtifact(path, f"id of added token {i}", number, f"0 to {MAX_TOKENS - 1}")
        if not isinstance(content, str) or not 0 < len(content) <= MAX_TOKEN_CHARACTERS:
            raise CorruptArtifact(
                path, f"content of added token {i}", content, f"1 to {MAX_TOKEN_CHARACTERS} characters"
            )


def _check_padding(path: Path, padding: Any) -> None:
    """A fixed length, or a multiple, to which every text would be padded."""
    if padding is None:
        return
    if not isinstance(padding, dict):
        raise CorruptArtifact(path, "'padding'", type(padding).__name__, "an object")
    strategy = padding.get("strategy")
    lengths = [padding.get("pad_to_multiple_of"), strategy.get("Fixed") if isinstance(strategy, dict) else None]
    for length in lengths:
        if length is not None and (type(length) is not int or not 0 <= length <= MAX_PADDED_TOKENS):
            raise CorruptArtifact(path, "'padding' length", length, f"0 to {MAX_PADDED_TOKENS} tokens")


def _texts(value: Any) -> Iterator[str]:
    """Every string in nested JSON, whose depth is already limited."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
