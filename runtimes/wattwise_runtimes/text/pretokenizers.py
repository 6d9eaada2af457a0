"""Pre-tokenizers by GGUF name: how byte-level vocabularies cut a text into words before merging.

Each is a list of regular expressions applied one after the other (every match becomes a word of its own, and so
does what lies between), with or without Unicode composition (NFC) first, and with or without `ignore_merges` (a
word that is a token is taken whole). The expressions are those of the models' own tokenizer.json files. GGUF
stores only a name; the name also stands for NFC and ignore_merges here. Not here: SentencePiece vocabularies,
which have no pre-tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattwise_devices.errors import UnsupportedArchitecture

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"
THREE_DIGITS = r"[0-9][0-9][0-9]"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
QWEN2 = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
QWEN35 = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASE_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}?"
    + r"|\p{N}{1,3}"
    + _CASE_TAIL
)
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*" + r"|\p{N}" + _CASE_TAIL
PUNCTUATION = "\\p{P}\\$\\+<=>\\^~\\|"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
DEEPSEEK3 = (
    _ASCII_PUNCTUATION
    + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED_CODER = _SUFFIX + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One way of cutting text into words."""

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False


_GPT2 = PreTokenizer((GPT2,))
_SMOLLM = PreTokenizer((DIGIT, GPT2))
_QWEN2 = PreTokenizer((QWEN2,))
_LLAMA3 = PreTokenizer((LLAMA3,))
_LLAMA3_WHOLE = PreTokenizer((LLAMA3,), ignore_merges=True)
_GPT4O = PreTokenizer((GPT4O,))
_DEEPSEEK3 = PreTokenizer((r"\p{N}{1,3}", _CJK, DEEPSEEK3))

# The first name of each kind is the one that is written.
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": _GPT2,
    "smollm": _SMOLLM,
    "llama-bpe": _LLAMA3_WHOLE,
    "qwen2": PreTokenizer((QWEN2,), nfc=True),
    "gpt-4o": _GPT4O,
    "tekken": PreTokenizer((TEKKEN,), ignore_merges=True),
    "qwen35": PreTokenizer((QWEN35,), nfc=True),
    "stablelm2": PreTokenizer((QWEN2,), nfc=True),
    "deepseek-r1-qwen": _QWEN2,
    "hunyuan": _QWEN2,
    "megrez": _QWEN2,
    "smaug-bpe": _LLAMA3,
    "dbrx": _LLAMA3,
    "chatglm-bpe": _LLAMA3,
    "glm4": _LLAMA3_WHOLE,
    "llama3": _LLAMA3_WHOLE,
    "llama-v3": _LLAMA3_WHOLE,
    "falcon3": _LLAMA3_WHOLE,
    "falcon-h1": _LLAMA3_WHOLE,
    "pixtral": _LLAMA3_WHOLE,
    "midm-2.0": _LLAMA3_WHOLE,
    "lfm2": _LLAMA3_WHOLE,
    "llama4": _GPT4O,
    "kanana2": _GPT4O,
    "minimax-m2": _GPT4O,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "jais": _GPT2,
    "gigachat": _GPT2,
    "exaone4": _GPT2,
    "trillion": _GPT2,
    "granite-docling": _GPT2,
    "a.x-4.0": _GPT2,
    "mellum": _GPT2,
    "starcoder": _SMOLLM,
    "refact": _SMOLLM,
    "command-r": _SMOLLM,
    "codeshell": _SMOLLM,
    "exaone": _SMOLLM,
    "minerva-7b": _SMOLLM,
    "mellum2": _SMOLLM,
    "falcon": PreTokenizer((f"[{PUNCTUATION}`]+", GPT2, THREE_DIGITS)),
    "deepseek-v3": _DEEPSEEK3,
    "hunyuan-dense": _DEEPSEEK3,
    "seed-coder": PreTokenizer((SEED_CODER,)),
    "bloom": PreTokenizer((BLOOM,)),
    "gpt3-finnish": PreTokenizer((BLOOM,)),
    "poro-chat": PreTokenizer((BLOOM,)),
    "viking": PreTokenizer((BLOOM, DIGIT)),
    "default": PreTokenizer((f"[{PUNCTUATION}]+", GPT2, DIGITS, THREE_DIGITS)),
}


def pre_tokenizer(name: str, where: str = "this vocabulary") -> PreTokenizer:
    """The pre-tokenizer of a GGUF name; refuses a name that is not known by that name."""
    try:
        return PRE_TOKENIZERS[name]
    except KeyError:
        raise UnsupportedArchitecture(
            f"{where} uses the pre-tokenizer {name!r}, which is not known here. "
            f"Known: {', '.join(sorted(PRE_TOKENIZERS))}."
        ) from None


def name_of(found: PreTokenizer, where: str) -> str:
    """GGUF name of a pre-tokenizer read from a tokenizer.json; refuses one that has no name there."""
    for name, known in PRE_TOKENIZERS.items():
        if known == found:
            return name
    raise UnsupportedArchitecture(
        f"{where} cuts text with a pre-tokenizer that is not known here: patterns {list(found.patterns)}, "
        f"NFC {found.nfc}, ignore_merges {found.ignore_merges}. Add it to PRE_TOKENIZERS with its GGUF name."
    )


def read_pre_tokenizer(data: Any, *, nfc: bool, ignore_merges: bool, where: str) -> PreTokenizer:
    """What the `pre_tokenizer` entry of a byte-level tokenizer.json means."""
    steps = data.get("pretokenizers") if isinstance(data, dict) and data.get("type") == "Sequence" else [data]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise UnsupportedArchitecture(f"{where}: a byte-level tokenizer without a ByteLevel pre-tokenizer")
    patterns = [pattern for step in steps for pattern in _step_patterns(step, where)]
    if not any(step.get("type") == "ByteLevel" for step in steps):
        raise UnsupportedArchitecture(f"{where}: no ByteLevel step in its pre-tokenizer")
    return PreTokenizer(tuple(patterns), nfc=nfc, ignore_merges=ignore_merges)


def _step_patterns(step: Mapping[str, Any], where: str) -> list[str]:
    kind = step.get("type")
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            raise UnsupportedArchitecture(f"{where}: ByteLevel with add_prefix_space is not supported")
        return [GPT2] if step.get("use_regex", True) else []
    if kind == "Digits":
        return [DIGIT if step.get("individual_digits") else DIGITS]
    if kind == "Punctuation" and step.get("behavior") == "Contiguous":
        return [f"[{PUNCTUATION}`]+"]
    if kind == "Split":
        pattern = step.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        # "Removed" with invert keeps exactly the matches; the known patterns match everything.
        whole = (step.get("behavior"), bool(step.get("invert"))) in (("Isolated", False), ("Removed", True))
        if isinstance(regex, str) and whole:
            return [regex]
    raise UnsupportedArchitecture(f"{where}: pre-tokenizer step {dict(step)} is not supported")
