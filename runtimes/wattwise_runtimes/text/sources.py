"""Vocabularies and tokenizers from files: whatever form a model keeps its vocabulary in.

A Hugging Face folder (tokenizer.json; SentencePiece or rank-file tokenizer.model; vocab.json and merges.txt),
one of those files alone, a GGUF file, or llama2.c's tokenizer.bin.
"""

from __future__ import annotations

from pathlib import Path

from wattwise_devices.errors import LoadError, UnsupportedArchitecture
from wattwise_runtimes.formats.json_file import read_json_object
from wattwise_runtimes.formats.tokenizer_json import MAX_BYTES as MAX_TOKENIZER_BYTES
from wattwise_runtimes.formats.tokenizer_json import check_tokenizer_data
from wattwise_runtimes.text.hf_folder import FolderSettings, apply_settings, read_settings, with_added
from wattwise_runtimes.text.tokenizer import Tokenizer, check_vocabulary
from wattwise_runtimes.text.vocabulary import Vocabulary


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model folder or file."""
    return Tokenizer(load_vocabulary(path))


def load_vocabulary(path: str | Path) -> Vocabulary:
    """The vocabulary of a model folder or file, checked."""
    path = Path(path)
    vocabulary = _from_folder(path) if path.is_dir() else _from_file(path)
    check_vocabulary(vocabulary)
    return vocabulary


def _from_folder(folder: Path) -> Vocabulary:
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json"):
        if (folder / name).is_file():
            return _from_hf_file(folder / name, read_settings(folder))
    rank_files = sorted(folder.glob("tok*.bin"))
    if len(rank_files) == 1:
        return _from_file(rank_files[0])
    raise LoadError(
        f"{folder} has no tokenizer: looked for tokenizer.json, tokenizer.model, vocab.json with merges.txt, "
        f"and one tok*.bin (found {len(rank_files)})."
    )


def _from_file(path: Path) -> Vocabulary:
    if not path.is_file():
        raise LoadError(f"{path} does not exist or is no ordinary file.")
    if path.suffix == ".gguf":
        from wattwise_runtimes.formats.gguf import read_gguf
        from wattwise_runtimes.text.gguf_vocab import vocabulary_from_gguf

        return vocabulary_from_gguf(read_gguf(path).fields, path)
    if path.suffix == ".bin":
        from wattwise_runtimes.text.llama2c import read_tokenizer_bin

        return read_tokenizer_bin(path)
    if path.suffix in (".json", ".model"):
        return _from_hf_file(path, read_settings(path.parent))
    raise UnsupportedArchitecture(
        f"{path} is not a tokenizer file that is known here (.json, .model, .bin of llama2.c, .gguf)."
    )


def _from_hf_file(path: Path, settings: FolderSettings) -> Vocabulary:
    if path.name == "vocab.json":
        from wattwise_runtimes.text.gpt2_files import read_vocab_and_merges

        vocabulary = read_vocab_and_merges(path, settings)
    elif path.suffix == ".json":
        from wattwise_runtimes.text.hf_json import refuse_unsupported, vocabulary_from_json

        data = read_json_object(path, MAX_TOKENIZER_BYTES)
        refuse_unsupported(data, str(path))
        check_tokenizer_data(data, path)
        return apply_settings(vocabulary_from_json(data, str(path), settings.added), settings)
    else:
        from wattwise_runtimes.text.rank_file import is_rank_file, read_rank_file
        from wattwise_runtimes.text.sentencepiece import read_sentencepiece

        if is_rank_file(path):
            vocabulary = read_rank_file(path, settings)
        else:
            vocabulary = read_sentencepiece(path)
    return apply_settings(with_added(vocabulary, settings.added, settings.where), settings)
