"""Tokenizer settings that a Hugging Face folder keeps beside the vocabulary.

tokenizer_config.json, special_tokens_map.json, generation_config.json, chat_template.jinja and chat_templates/:
special tokens, whether BOS goes in front, further end tokens, chat templates.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.formats.checked import read_range, regular_file_size
from wattwise_runtimes.formats.json_file import parse_json
from wattwise_runtimes.text.hf_json import AddedToken
from wattwise_runtimes.text.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary

MAX_CONFIG_BYTES = 16 << 20
MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """What the small files of a folder say about its tokenizer. Names map to token texts."""

    where: str
    tokenizer_class: str = ""
    special: Mapping[str, str] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    added: tuple[AddedToken, ...] = ()
    eos_ids: tuple[int, ...] = ()
    templates: Mapping[str, str] = field(default_factory=dict)


def read_settings(folder: Path) -> FolderSettings:
    """Read what there is; absent files mean nothing said."""
    config = _object(folder / "tokenizer_config.json")
    special = _special_tokens(_object(folder / "special_tokens_map.json"))
    special |= _special_tokens(config)
    where = str(folder / "tokenizer_config.json")
    return FolderSettings(
        where=where,
        tokenizer_class=str(config.get("tokenizer_class") or ""),
        special=special,
        add_bos=_flag(config, "add_bos_token", where),
        add_eos=_flag(config, "add_eos_token", where),
        added=_added_tokens(config.get("added_tokens_decoder"), where),
        eos_ids=_eos_ids(_object(folder / "generation_config.json"), folder),
        templates=_templates(folder, config),
    )


def apply_settings(vocabulary: Vocabulary, settings: FolderSettings) -> Vocabulary:
    """The vocabulary with what the folder says about it."""
    ids = {text: i for i, text in enumerate(vocabulary.tokens)}

    def special(name: str, default: int | None) -> int | None:
        text = settings.special.get(name)
        if text is None:
            return default
        if text not in ids:
            raise CorruptArtifact(settings.where, name, text, "a token of the vocabulary")
        return ids[text]

    bos = special("bos_token", vocabulary.bos_id)
    eos = special("eos_token", vocabulary.eos_id)
    unk = special("unk_token", vocabulary.unk_id)
    kinds = list(vocabulary.kinds)
    for token in (bos, eos):
        if token is not None and kinds[token] not in (CONTROL, UNKNOWN):
            kinds[token] = CONTROL
    more = tuple(i for i in settings.eos_ids if i != eos)
    for token in more:
        if token >= len(kinds):
            raise CorruptArtifact(
                settings.where, "eos_token_id of generation_config.json", token, f"below {len(kinds)}"
            )
    templates = dict(settings.templates)
    return dataclasses.replace(
        vocabulary,
        kinds=tuple(kinds),
        bos_id=bos,
        eos_id=eos if eos is not None or not more else more[0],
        unk_id=unk if vocabulary.model == "spm" else vocabulary.unk_id,
        pad_id=special("pad_token", vocabulary.pad_id),
        add_bos=vocabulary.add_bos if settings.add_bos is None else settings.add_bos,
        add_eos=vocabulary.add_eos if settings.add_eos is None else settings.add_eos,
        eog_ids=more,
        chat_template=templates.pop("default", vocabulary.chat_template),
        chat_templates=tuple(sorted(templates.items())),
    )


def with_added(vocabulary: Vocabulary, added: tuple[AddedToken, ...], where: str) -> Vocabulary:
    """The vocabulary with added tokens: new ones at their ids, known ones marked as special or user-defined."""
    tokens, kinds, scores = list(vocabulary.tokens), list(vocabulary.kinds), list(vocabulary.scores)
    for token in sorted(added, key=lambda a: a.id):
        if token.id > len(tokens) + 4096:
            raise CorruptArtifact(where, f"id of added token {token.content[:80]!r}", token.id, f"near {len(tokens)}")
        while len(tokens) <= token.id:
            tokens.append(f"[PAD{len(tokens)}]")
            kinds.append(5)
            scores.append(0.0)
        if tokens[token.id] != token.content and kinds[token.id] != 5:
            raise CorruptArtifact(
                where, f"id of added token {token.content[:80]!r}", token.id, f"not that of {tokens[token.id][:80]!r}"
            )
        tokens[token.id] = token.content
        if kinds[token.id] != UNKNOWN:
            kinds[token.id] = CONTROL if token.special else USER_DEFINED
    return dataclasses.replace(
        vocabulary,
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        scores=tuple(scores) if vocabulary.model == "spm" else (),
        lstrip_ids=vocabulary.lstrip_ids | {a.id for a in added if a.lstrip},
        rstrip_ids=vocabulary.rstrip_ids | {a.id for a in added if a.rstrip},
    )


# transformers writes "no limit" as 10**30, more than the strict reader's integers hold.
_NO_LIMIT = re.compile(rb'("model_max_length"\s*:\s*)[0-9]{19,40}(?=\s*[,}])')


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    size = regular_file_size(path)
    if size > MAX_CONFIG_BYTES:
        raise CorruptArtifact(path, "file size in bytes", size, f"at most {MAX_CONFIG_BYTES}")
    data = parse_json(_NO_LIMIT.sub(rb"\g<1>null", bytes(read_range(path, 0, size, "JSON text"))), path)
    if not isinstance(data, dict):
        raise CorruptArtifact(path, "JSON value", type(data).__name__, "an object")
    return data


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    out: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            out[name] = text
    return out


def _flag(config: Mapping[str, Any], name: str, where: str) -> bool | None:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise CorruptArtifact(where, name, value, "true or false")
    return value


def _added_tokens(data: Any, where: str) -> tuple[AddedToken, ...]:
    if data is None:
        return ()
    if not isinstance(data, dict):
        raise CorruptArtifact(where, "added_tokens_decoder", data, "an object")
    tokens = []
    for key, value in data.items():
        if not key.isascii() or not key.isdigit() or len(key) > 9:
            raise CorruptArtifact(where, "id in added_tokens_decoder", key, "up to nine digits")
        tokens.append(AddedToken.read(value, where, int(key)))
    return tuple(tokens)


def _eos_ids(config: Mapping[str, Any], folder: Path) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise CorruptArtifact(folder / "generation_config.json", "eos_token_id", value, "ids")
    return tuple(ids)


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name, the main one as "default"; files win over the config entry."""
    out: dict[str, str] = {}
    entry = config.get("chat_template")
    if isinstance(entry, str):
        out["default"] = entry
    elif isinstance(entry, list):
        for item in entry:
            if not (
                isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
            ):
                raise CorruptArtifact(folder / "tokenizer_config.json", "chat_template", item, "name and template")
            out[item["name"]] = item["template"]
    elif entry is not None:
        raise CorruptArtifact(folder / "tokenizer_config.json", "chat_template", entry, "a template or a list")
    if (folder / "chat_template.jinja").is_file():
        out["default"] = _template_file(folder / "chat_template.jinja")
    if (folder / "chat_templates").is_dir():
        for path in sorted((folder / "chat_templates").glob("*.jinja")):
            out[path.stem] = _template_file(path)
    return out


def _template_file(path: Path) -> str:
    size = regular_file_size(path)
    if size > MAX_TEMPLATE_BYTES:
        raise CorruptArtifact(path, "file size in bytes", size, f"at most {MAX_TEMPLATE_BYTES}")
    try:
        return bytes(read_range(path, 0, size, "template")).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptArtifact(path, f"byte {error.start}", error.object[error.start], "UTF-8 text") from None
