"""The tokenizers-library object that runs a Vocabulary.

Built from checked plain data through the library's classes, so that no foreign JSON or regular expression gets
into native code. SentencePiece vocabularies become BPE with byte fallback; their merges follow from the scores.
"""

from __future__ import annotations

from typing import Any

from wattwise_devices.errors import CorruptArtifact, Error
from wattwise_runtimes.text.pretokenizers import DIGIT, GPT2, pre_tokenizer
from wattwise_runtimes.text.vocabulary import CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, Vocabulary


def merges_from_scores(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way of making a token from two others, best-scored token first.

    SentencePiece joins the adjacent pair whose joint token scores best, leftmost first. Ways of making one token
    are listed with the longest left part first, which gives the leftmost-first rule for overlapping pairs.
    """
    ids = {text: i for i, text in enumerate(vocabulary.tokens) if vocabulary.kinds[i] == NORMAL}
    order = sorted(ids.values(), key=lambda i: (-vocabulary.scores[i], i))
    merges: list[tuple[str, str]] = []
    for token in order:
        text = vocabulary.tokens[token]
        for cut in range(len(text) - 1, 0, -1):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                merges.append((left, right))
    return merges


def _listed_merges(vocabulary: Vocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for rank, merge in enumerate(vocabulary.merges):
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or left not in ids or right not in ids or left + right not in ids:
            raise CorruptArtifact("vocabulary", f"merge {rank}", merge, "two tokens that join into a third")
        merges.append((left, right))
    return merges


def build(vocabulary: Vocabulary) -> Any:
    """A `tokenizers.Tokenizer` for this vocabulary. Whatever the library objects to is a CorruptArtifact."""
    try:
        return _build(vocabulary)
    except Error:
        raise
    except BaseException as error:
        # A panic of the library is no Exception; an interrupt of the user is none of its objections.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CorruptArtifact(
                "vocabulary", "content", str(error)[:200], "what a tokenizer can be made of"
            ) from None
        raise


def _build(vocabulary: Vocabulary) -> Any:
    from tokenizers import Tokenizer, models

    ids = {text: i for i, text in enumerate(vocabulary.tokens)}
    spm = vocabulary.model == "spm"
    merges = _listed_merges(vocabulary, ids) if vocabulary.merges or not spm else merges_from_scores(vocabulary)
    unknown = vocabulary.tokens[vocabulary.unk_id] if vocabulary.unk_id is not None and spm else None
    byte_fallback = spm and all(f"<0x{byte:02X}>" in ids for byte in range(256))
    pre = None if spm else pre_tokenizer(vocabulary.pre)
    backend = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=merges,
            unk_token=unknown,
            fuse_unk=spm,
            byte_fallback=byte_fallback,
            ignore_merges=bool(pre and pre.ignore_merges),
        )
    )
    if pre is None:
        _set_spm_stages(backend, vocabulary)
    else:
        _set_bpe_stages(backend, pre)
    _add_special_tokens(backend, vocabulary)
    _set_post_processor(backend, vocabulary)
    return backend


def _set_bpe_stages(backend: Any, pre: Any) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    # The usual spellings, which other readers of `to_json` know best: GPT-2's expression is part of ByteLevel.
    within = pre.patterns[-1] == GPT2
    steps: list[Any] = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern == DIGIT
        else pre_tokenizers.Split(Regex(pattern), "isolated")
        for pattern in (pre.patterns[:-1] if within else pre.patterns)
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=within))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    backend.decoder = decoders.ByteLevel()


def _set_spm_stages(backend: Any, vocabulary: Vocabulary) -> None:
    from tokenizers import decoders, normalizers, pre_tokenizers

    each = vocabulary.add_space_prefix and vocabulary.prefix_rule == "each"
    replace: Any = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if each else replace
    if vocabulary.add_space_prefix and not each:
        scheme = "first" if vocabulary.prefix_rule == "first-missing" else "always"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme, split=False)
    stages = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space_prefix:
        stages.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(stages)


def _add_special_tokens(backend: Any, vocabulary: Vocabulary) -> None:
    from tokenizers import AddedToken

    added = []
    for token, kind in enumerate(vocabulary.kinds):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            added.append(
                AddedToken(
                    vocabulary.tokens[token],
                    special=kind != USER_DEFINED,
                    normalized=False,
                    lstrip=token in vocabulary.lstrip_ids,
                    rstrip=token in vocabulary.rstrip_ids,
                )
            )
    backend.add_tokens(added)


def _set_post_processor(backend: Any, vocabulary: Vocabulary) -> None:
    """Only for other readers of `to_json`: our own encode adds BOS itself."""
    from tokenizers import processors

    first = [vocabulary.bos_id] if vocabulary.add_bos and vocabulary.bos_id is not None else []
    last = [vocabulary.eos_id] if vocabulary.add_eos and vocabulary.eos_id is not None else []
    if not first and not last:
        return
    names = {token: vocabulary.tokens[token] for token in (*first, *last)}
    single = [*(names[i] for i in first), "$A", *(names[i] for i in last)]
    pair = [*single, *(f"{names[i]}:1" for i in first), "$B:1", *(f"{names[i]}:1" for i in last)]
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(text, i) for i, text in names.items()]
    )
