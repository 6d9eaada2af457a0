"""A Vocabulary from a Hugging Face tokenizer.json.

Knows the two families that wattwise runs: byte-level BPE, and BPE with byte fallback as converted from
SentencePiece. Whatever would change the tokens and is not understood is refused by name. Not here: the files
around it (tokenizer_config.json and the rest), see `text.hf_folder`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.text.pretokenizers import name_of, read_pre_tokenizer
from wattwise_runtimes.text.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)

PrefixRule = Literal["each", "each-missing", "first-missing"]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One entry of `added_tokens` (or of tokenizer_config.json's `added_tokens_decoder`)."""

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False

    @classmethod
    def read(cls, data: Any, where: str, token: Any = None) -> AddedToken:
        """From JSON; `token` is the id where it is not part of the entry."""
        number = data.get("id", token) if isinstance(data, dict) else None
        content = data.get("content") if isinstance(data, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or number < 0 or not isinstance(content, str):
            raise CorruptArtifact(where, "added token", data, "an object with id and content")
        if data.get("single_word"):
            raise UnsupportedArchitecture(f"{where}: added token {content!r} has single_word, not supported")
        flags = {name: bool(data.get(name)) for name in ("special", "lstrip", "rstrip")}
        return cls(number, content, **flags)


def vocabulary_from_json(data: Mapping[str, Any], where: str, more: Sequence[AddedToken] = ()) -> Vocabulary:
    """The vocabulary of a parsed tokenizer.json; `more`: added tokens that stand beside it."""
    refuse_unsupported(data, where)
    model = data["model"]
    added = {token.id: token for token in more}
    added.update((t.id, t) for t in (AddedToken.read(a, where) for a in data.get("added_tokens") or ()))
    tokens = _tokens(model.get("vocab"), added, where)
    merges = _merges(model.get("merges"), where)
    kinds = [_kind(i, text, added) for i, text in enumerate(tokens)]
    first, last = _post_processor_ids(data.get("post_processor"), where)
    unknown = model.get("unk_token")
    common: dict[str, Any] = {
        "tokens": tuple(tokens),
        "merges": merges,
        "unk_id": tokens.index(unknown) if unknown in tokens else None,
        "add_bos": bool(first),
        "bos_id": first[0] if first else None,
        "add_eos": bool(last),
        "lstrip_ids": frozenset(i for i, t in added.items() if t.lstrip),
        "rstrip_ids": frozenset(i for i, t in added.items() if t.rstrip),
    }
    if _is_byte_level(data.get("pre_tokenizer")):
        nfc = _is_nfc(data.get("normalizer"), where)
        ignore = bool(model.get("ignore_merges"))
        found = read_pre_tokenizer(data["pre_tokenizer"], nfc=nfc, ignore_merges=ignore, where=where)
        return Vocabulary(model="bpe", kinds=tuple(kinds), pre=name_of(found, where), add_space_prefix=False, **common)
    prefix, rule = _space_prefix(data, where)
    return Vocabulary(
        model="spm",
        kinds=tuple(_spm_kinds(kinds, tokens, common["unk_id"])),
        scores=scores_from_merges(tokens, kinds, merges),
        add_space_prefix=prefix,
        prefix_rule=rule,
        **common,
    )


def refuse_unsupported(data: Mapping[str, Any], where: str) -> None:
    """Refuse models that are not plain BPE, by name."""
    model = _dict(data, "model", where)
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedArchitecture(
            f"{where}: tokenizer model {model.get('type')!r} is not supported (only BPE, byte-level or with "
            "byte fallback)"
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UnsupportedArchitecture(f"{where}: BPE with {key} = {model[key]!r} is not supported")


def scores_from_merges(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str]) -> tuple[float, ...]:
    """SentencePiece scores that give the same order: a token's is minus the number of tokens merged before it.

    Tokens that no merge makes come after all others; special and byte tokens have 0.
    """
    order: dict[str, int] = {}
    for merge in merges:
        cut = merge.find(" ", 1)
        order.setdefault(merge[:cut] + merge[cut + 1 :], len(order))
    scores, rest = [], len(order)
    for text, kind in zip(tokens, kinds, strict=True):
        if kind != NORMAL or (len(text) == 6 and text.startswith("<0x")):
            scores.append(0.0)
        elif text in order:
            scores.append(-float(order[text]))
        else:
            scores.append(-float(rest))
            rest += 1
    return tuple(scores)


def _dict(data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(value, Mapping):
        raise CorruptArtifact(where, key, value, "an object")
    return value


def _tokens(vocab: Any, added: Mapping[int, AddedToken], where: str) -> list[str]:
    if not isinstance(vocab, dict) or not vocab:
        raise CorruptArtifact(where, "model.vocab", vocab, "an object of token ids")
    by_id: dict[int, str] = {}
    for text, token in vocab.items():
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise CorruptArtifact(where, f"id of token {text[:80]!r}", token, "a count from 0")
        if by_id.setdefault(token, text) != text:
            raise CorruptArtifact(
                where, f"id of token {text[:80]!r}", token, f"another than that of {by_id[token][:80]!r}"
            )
    for token in added.values():
        if by_id.setdefault(token.id, token.content) != token.content or (
            vocab.get(token.content, token.id) != token.id
        ):
            raise CorruptArtifact(
                where, f"id of added token {token.content[:80]!r}", token.id, f"not that of {by_id[token.id][:80]!r}"
            )
    size = max(by_id) + 1
    # A few ids may be missing (they become unused tokens), but a table is as long as its highest id.
    if size > 2 * len(by_id) + 1024:
        raise CorruptArtifact(where, "highest token id", size - 1, f"about the number of tokens, {len(by_id)}")
    return [by_id.get(i) or f"[PAD{i}]" for i in range(size)]


def _kind(token: int, text: str, added: Mapping[int, AddedToken]) -> int:
    if token in added:
        return CONTROL if added[token].special else USER_DEFINED
    return UNUSED if text == f"[PAD{token}]" else NORMAL


def _spm_kinds(kinds: Sequence[int], tokens: Sequence[str], unknown: int | None) -> list[int]:
    bytes_spelled = {f"<0x{byte:02X}>" for byte in range(256)}
    out = [BYTE if text in bytes_spelled else kind for kind, text in zip(kinds, tokens, strict=True)]
    if unknown is not None:
        out[unknown] = UNKNOWN
    return out


def _merges(data: Any, where: str) -> tuple[str, ...]:
    if not isinstance(data, list):
        raise CorruptArtifact(where, "model.merges", data, "a list")
    merges = []
    for rank, merge in enumerate(data):
        if isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge):
            merge = " ".join(merge)
        if not isinstance(merge, str) or merge.count(" ") != 1 or len(merge) < 3:
            raise CorruptArtifact(where, f"merge {rank}", merge, "a pair of tokens")
        merges.append(merge)
    return tuple(merges)


def _is_byte_level(data: Any) -> bool:
    if not isinstance(data, dict):
        return False
    steps = data.get("pretokenizers") if data.get("type") == "Sequence" else [data]
    return isinstance(steps, list) and any(isinstance(s, dict) and s.get("type") == "ByteLevel" for s in steps)


def _steps(data: Any, key: str) -> list[Any]:
    if data is None:
        return []
    if isinstance(data, dict) and data.get("type") == "Sequence":
        inner = data.get(key)
        return [step for item in inner for step in _steps(item, key)] if isinstance(inner, list) else [data]
    return [data]


def _is_nfc(data: Any, where: str) -> bool:
    steps = _steps(data, "normalizers")
    if not steps:
        return False
    if steps == [{"type": "NFC"}]:
        return True
    raise UnsupportedArchitecture(f"{where}: normalizer {str(data)[:200]} of a byte-level tokenizer is not supported")


def _space_prefix(data: Mapping[str, Any], where: str) -> tuple[bool, PrefixRule]:
    """(is a space put in front, by which rule) of a tokenizer in SentencePiece's manner."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = _steps(data.get("normalizer"), "normalizers")
    pre = data.get("pre_tokenizer")
    if steps == [{"type": "Prepend", "prepend": SPACE}, replace] and pre is None:
        return True, "each"
    # After the replacement no space is left to split at: Gemma's file has such a step.
    no_op = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if steps == [replace] and pre in (None, no_op):
        return False, "each"
    if steps in ([], [replace]) and isinstance(pre, dict) and pre.get("type") == "Metaspace":
        return _metaspace(pre, where)
    raise UnsupportedArchitecture(
        f"{where}: normalizer {str(data.get('normalizer'))[:200]} with pre-tokenizer {str(pre)[:200]} is not supported"
    )


def _metaspace(pre: Mapping[str, Any], where: str) -> tuple[bool, PrefixRule]:
    if pre.get("replacement") != SPACE or pre.get("split") is not False:
        raise UnsupportedArchitecture(f"{where}: Metaspace pre-tokenizer {dict(pre)} is not supported")
    rules: dict[Any, tuple[bool, PrefixRule]] = {
        "always": (True, "each-missing"),
        "first": (True, "first-missing"),
        "never": (False, "each"),
    }
    scheme = pre.get("prepend_scheme", "always")
    if scheme not in rules:
        raise CorruptArtifact(where, "prepend_scheme", scheme, "always, first or never")
    return rules[scheme]


def _post_processor_ids(data: Any, where: str) -> tuple[list[int], list[int]]:
    """Ids that the post-processor puts before and after a text."""
    before: list[int] = []
    after: list[int] = []
    for step in _steps(data, "processors"):
        kind = step.get("type") if isinstance(step, dict) else None
        if kind in (None, "ByteLevel"):
            continue
        if kind != "TemplateProcessing":
            raise UnsupportedArchitecture(f"{where}: post-processor {kind!r} is not supported")
        try:
            ids = {name: token["ids"] for name, token in step["special_tokens"].items()}
            seen = False
            for piece in step["single"]:
                if "Sequence" in piece:
                    seen = True
                else:
                    (after if seen else before).extend(_ids(ids[piece["SpecialToken"]["id"]]))
        except (KeyError, TypeError, AttributeError):
            raise CorruptArtifact(where, "post_processor", step, "pieces that name special tokens") from None
    if len(before) > 1 or len(after) > 1:
        raise UnsupportedArchitecture(f"{where}: {len(before)} tokens before and {len(after)} after every text")
    return before, after


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        raise TypeError("not a list of ids")
    return value
