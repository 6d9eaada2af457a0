"""A Vocabulary as GGUF's `tokenizer.*` metadata, and back.

The keys and token types are those that llama.cpp reads. What GGUF has no key for (where the prefix space goes,
blanks that special tokens swallow, more than one end token) stands under `wattwise.*` keys, which other programs
skip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wattwise_devices.errors import ConvertError, CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.text.backend import merges_from_scores
from wattwise_runtimes.text.vocabulary import CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

PREFIX = "tokenizer.ggml."
MERGE_TOLERANCE = 0.01  # of the pairs: converters of SentencePiece files differ in a few
_MODELS = {"spm": "llama", "bpe": "gpt2"}
_IDS = {
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "eot_id": "eot_token_id",
    "unk_id": "unknown_token_id",
    "pad_id": "padding_token_id",
}


def gguf_fields(vocabulary: Vocabulary, size: int | None = None) -> dict[str, Any]:
    """Metadata of the vocabulary. size: rows of the embedding, where it has more than the vocabulary has tokens.

    Values: str, bool, int (uint32), list[str], float32 or int32 arrays.
    """
    tokens, kinds, scores = list(vocabulary.tokens), list(vocabulary.kinds), list(vocabulary.scores)
    if size is not None and size < len(tokens):
        raise CorruptArtifact("vocabulary", "number of tokens", len(tokens), f"at most {size}, the embedding's rows")
    for i in range(len(tokens), size or 0):
        tokens.append(f"[PAD{i}]")
        kinds.append(UNUSED)
        scores.append(0.0)
    spm = vocabulary.model == "spm"
    if spm:
        _check_scores_suffice(vocabulary)
        # llama.cpp looks for user-defined tokens in the text as typed.
        tokens = [t.replace(SPACE, " ") if k == USER_DEFINED else t for t, k in zip(tokens, kinds, strict=True)]
    fields: dict[str, Any] = {
        PREFIX + "model": _MODELS[vocabulary.model],
        PREFIX + "pre": vocabulary.pre,
        PREFIX + "tokens": tokens,
        PREFIX + "token_type": np.asarray(kinds, dtype=np.int32),
    }
    if spm:
        fields[PREFIX + "scores"] = np.asarray(scores[: len(tokens)], dtype=np.float32)
    else:
        fields[PREFIX + "merges"] = list(vocabulary.merges)
    for attribute, key in _IDS.items():
        token = getattr(vocabulary, attribute)
        if token is not None:
            fields[PREFIX + key] = token
    extra = [i for i in vocabulary.eog_ids if i != vocabulary.eos_id]
    if vocabulary.eot_id is None and extra:  # so that llama.cpp's own tools stop there too
        fields[PREFIX + "eot_token_id"] = extra[0]
    fields[PREFIX + "add_bos_token"] = vocabulary.add_bos and vocabulary.bos_id is not None
    fields[PREFIX + "add_eos_token"] = vocabulary.add_eos and vocabulary.eos_id is not None
    fields[PREFIX + "add_space_prefix"] = vocabulary.add_space_prefix
    fields.update(_template_fields(vocabulary))
    fields.update(_own_fields(vocabulary))
    return fields


def _check_scores_suffice(vocabulary: Vocabulary) -> None:
    """GGUF keeps scores and no merges here: any two tokens that join into a token may be joined.

    Vocabularies made by SentencePiece list just those pairs. One trained as BPE in the first place lists fewer,
    and would be read differently.
    """
    if not vocabulary.merges:
        return
    normal = {text for text, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == NORMAL}
    listed = {tuple(merge.split(" ")) for merge in vocabulary.merges}
    listed = {pair for pair in listed if {*pair, "".join(pair)} <= normal}
    possible = set(merges_from_scores(vocabulary))
    different = len(listed ^ possible)
    if different > MERGE_TOLERANCE * len(possible):
        raise ConvertError(
            f"the vocabulary lists {len(listed)} merges where its tokens allow {len(possible)} ({different} differ). "
            "GGUF has no place for such a list beside byte fallback; convert to ONNX, or give the model a "
            "SentencePiece tokenizer.model or a byte-level vocabulary."
        )


def _template_fields(vocabulary: Vocabulary) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if vocabulary.chat_template is not None:
        fields["tokenizer.chat_template"] = vocabulary.chat_template
    if vocabulary.chat_templates:
        fields["tokenizer.chat_templates"] = [name for name, _ in vocabulary.chat_templates]
        for name, source in vocabulary.chat_templates:
            fields[f"tokenizer.chat_template.{name}"] = source
    return fields


def _own_fields(vocabulary: Vocabulary) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if vocabulary.prefix_rule != "each":
        fields["wattwise.prefix_rule"] = vocabulary.prefix_rule
    for name in ("lstrip_ids", "rstrip_ids", "eog_ids"):
        ids = sorted(getattr(vocabulary, name))
        if ids:
            fields[f"wattwise.{name}"] = np.asarray(ids, dtype=np.int32)
    return fields


def has_vocabulary(fields: Mapping[str, Any]) -> bool:
    """Whether a GGUF file has one at all: files of ids only name their tokenizer "no_vocab" or "none"."""
    return fields.get("tokenizer.ggml.model") not in (None, "no_vocab", "none")


def vocabulary_from_gguf(fields: Mapping[str, Any], path: object = "GGUF file") -> Vocabulary:
    """The vocabulary in a GGUF file's metadata; `path` is for messages."""
    model = _get(fields, path, "model", str)
    names = {value: key for key, value in _MODELS.items()}
    if model not in names:
        raise UnsupportedArchitecture(
            f"{path}: tokenizer.ggml.model is {model!r}; only 'llama' (SentencePiece BPE) and 'gpt2' (byte-level "
            "BPE) are supported"
        )
    spm = model == "llama"
    tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(_strings(fields, path, "tokens") or ())]
    if not tokens:
        raise CorruptArtifact(path, PREFIX + "tokens", None, "a list of strings")
    count = len(tokens)
    kinds = _numbers(fields, path, "token_type", count)
    scores = _numbers(fields, path, "scores", count) if spm else None
    if spm and scores is None:
        raise CorruptArtifact(path, PREFIX + "scores", None, f"{count} numbers")
    merges = _strings(fields, path, "merges") if not spm else None
    if not spm and merges is None:
        raise CorruptArtifact(path, PREFIX + "merges", None, "a list of strings")
    pre = _get(fields, path, "pre", str, "default")
    return Vocabulary(
        model="spm" if spm else "bpe",
        tokens=tuple(tokens),
        kinds=tuple(int(k) or NORMAL for k in kinds) if kinds is not None else (NORMAL,) * count,
        scores=tuple(float(s) for s in scores) if scores is not None else (),
        merges=tuple(merges or ()),
        pre=pre,
        add_bos=_get(fields, path, "add_bos_token", bool, spm or pre in _BOS_BY_DEFAULT),
        add_eos=_get(fields, path, "add_eos_token", bool, False),
        add_space_prefix=_get(fields, path, "add_space_prefix", bool, True) if spm else False,
        **_ids(fields, path, spm, count),
        **_templates(fields, path),
        **{**_known_models(fields, tokens, kinds), **_own(fields, path)},
    )


def _known_models(fields: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int] | None) -> dict[str, Any]:
    """What other programs' files leave to the model's name: Phi-3's special tokens swallow the blanks after them."""
    name = str(fields.get("general.name", "")).lower()
    if kinds is None or not ("phi-3" in name or "phi3" in name):
        return {}
    plain = ("<unk>", "<s>", "<|endoftext|>")
    special = (UNKNOWN, CONTROL, USER_DEFINED)
    ids = (i for i, kind in enumerate(kinds) if kind in special and tokens[i] not in plain)
    return {"rstrip_ids": frozenset(ids)}


# llama.cpp puts BOS in front for these names unless the file says otherwise.
_BOS_BY_DEFAULT = frozenset(
    ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
)


def _ids(fields: Mapping[str, Any], path: object, spm: bool, count: int) -> dict[str, int | None]:
    defaults = {"bos_id": 1, "eos_id": 2, "unk_id": 0} if spm else {}
    out: dict[str, int | None] = {}
    for attribute, key in _IDS.items():
        value = _get(fields, path, key, int, None)
        if value is not None and not 0 <= value < count:
            raise CorruptArtifact(path, PREFIX + key, value, f"below the number of tokens, {count}")
        fallback = defaults.get(attribute)
        out[attribute] = value if value is not None else fallback if fallback is None or fallback < count else None
    return out


def _templates(fields: Mapping[str, Any], path: object) -> dict[str, Any]:
    start = "tokenizer.chat_template"
    found = {key: value for key, value in fields.items() if key == start or key.startswith(start + ".")}
    for key, value in found.items():
        if not isinstance(value, str):
            raise CorruptArtifact(path, key, type(value).__name__, "a string")
    main = found.pop(start, None)
    named = tuple(sorted((key[len(start) + 1 :], value) for key, value in found.items()))
    return {"chat_template": main, "chat_templates": named}


def _own(fields: Mapping[str, Any], path: object) -> dict[str, Any]:
    out: dict[str, Any] = {}
    rule = fields.get("wattwise.prefix_rule", "each")
    if rule not in ("each", "each-missing", "first-missing"):
        raise CorruptArtifact(path, "wattwise.prefix_rule", rule, "each, each-missing or first-missing")
    out["prefix_rule"] = rule
    for name in ("lstrip_ids", "rstrip_ids", "eog_ids"):
        value = fields.get(f"wattwise.{name}")
        if value is None:
            continue
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise CorruptArtifact(path, f"wattwise.{name}", type(value).__name__, "an array of ids")
        ids = [int(i) for i in value]
        out[name] = tuple(ids) if name == "eog_ids" else frozenset(ids)
    return out


def _get(fields: Mapping[str, Any], path: object, key: str, kind: type, default: Any = ...) -> Any:
    value = fields.get(PREFIX + key, default)
    if value is default and default is not ...:
        return value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        shown = None if value is ... else value
        raise CorruptArtifact(path, PREFIX + key, shown, f"a {kind.__name__}")
    return value


def _strings(fields: Mapping[str, Any], path: object, key: str) -> list[str] | None:
    value = fields.get(PREFIX + key)
    if value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return value
    raise CorruptArtifact(path, PREFIX + key, type(value).__name__, "a list of strings")


def _numbers(fields: Mapping[str, Any], path: object, key: str, count: int) -> list[Any] | None:
    value = fields.get(PREFIX + key)
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iuf":
        raise CorruptArtifact(path, PREFIX + key, type(value).__name__, "an array of numbers")
    if len(value) < count:
        raise CorruptArtifact(path, f"length of {PREFIX}{key}", len(value), f"{count}, the number of tokens")
    return value[:count].tolist()
