"""vocab.json with merges.txt: the form of GPT-2's and Qwen2's vocabularies.

The files do not say how text is cut into words; the tokenizer's class, or else the special tokens, do.
"""

from __future__ import annotations

from pathlib import Path

from wattwise_devices.errors import CorruptArtifact, LoadError, UnsupportedArchitecture
from wattwise_runtimes.formats.checked import read_range, regular_file_size
from wattwise_runtimes.formats.json_file import read_json_object
from wattwise_runtimes.text.hf_folder import FolderSettings
from wattwise_runtimes.text.vocabulary import CONTROL, NORMAL, Vocabulary

MAX_BYTES = 64 << 20
_PRE_BY_CLASS = {
    "": "gpt-2",
    "GPT2Tokenizer": "gpt-2",
    "GPT2TokenizerFast": "gpt-2",
    "Qwen2Tokenizer": "qwen2",
    "Qwen2TokenizerFast": "qwen2",
}
END_OF_TEXT = "<|endoftext|>"


def read_vocab_and_merges(path: Path, settings: FolderSettings) -> Vocabulary:
    """The vocabulary of vocab.json (`path`) and the merges.txt beside it."""
    pre = _PRE_BY_CLASS.get(settings.tokenizer_class)
    if pre is None:
        raise UnsupportedArchitecture(
            f"{path}: tokenizer class {settings.tokenizer_class!r} does not tell how text is cut into words. "
            f"Known: {', '.join(name for name in _PRE_BY_CLASS if name)}; or add a tokenizer.json."
        )
    tokens = _tokens(path)
    end = tokens.index(END_OF_TEXT) if END_OF_TEXT in tokens else None
    return Vocabulary(
        model="bpe",
        tokens=tuple(tokens),
        kinds=tuple(CONTROL if i == end else NORMAL for i in range(len(tokens))),
        merges=tuple(_merges(path.with_name("merges.txt"))),
        pre=pre,
        add_space_prefix=False,
        bos_id=end if pre == "gpt-2" else None,
        eos_id=end,
    )


def _tokens(path: Path) -> list[str]:
    vocab = read_json_object(path, MAX_BYTES)
    by_id: dict[int, str] = {}
    for text, token in vocab.items():
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < len(vocab) or token in by_id:
            raise CorruptArtifact(path, f"id of {text[:80]!r}", token, f"0 to {len(vocab) - 1}, each once")
        by_id[token] = text
    return [by_id[i] for i in range(len(by_id))]


def _merges(path: Path) -> list[str]:
    if not path.is_file():
        raise LoadError(f"{path} is missing: vocab.json needs a merges.txt beside it.")
    size = regular_file_size(path)
    if size > MAX_BYTES:
        raise CorruptArtifact(path, "file size in bytes", size, f"at most {MAX_BYTES}")
    try:
        lines = bytes(read_range(path, 0, size, "merges")).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CorruptArtifact(path, f"byte {error.start}", error.object[error.start], "UTF-8 text") from None
    merges = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        if line.count(" ") != 1 or len(line) < 3:
            raise CorruptArtifact(path, f"line {number}", line, "two tokens and a space")
        merges.append(line)
    return merges
