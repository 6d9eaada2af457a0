"""Step 2: a byte-level BPE with GPT-2's way of cutting words, learnt from the training part.

    python -m models.tokenizer --data PREPARED --out PREPARED --config models/configs/mini.toml

GPT-2's pattern because every runtime knows it by name. The ChatML marks and the tool-call marks are single
tokens that text cannot spell by accident. Writes `PREPARED/tokenizer.json`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.configuration import load_config
from models.data import read_documents, source_names
from models.documents import SPECIAL_TOKENS, Document, describe_tools
from models.files import write_atomically

BYTES_PER_SOURCE = 8_000_000  # of the one with the largest share: enough for a few thousand merges


def _text_of(document: Document) -> str:
    parts = [describe_tools(document.tools)] if document.tools else []
    return "\n".join([*parts, *(turn.content for turn in document.turns)]) or document.text


def _texts(prepared: Path, shares: Mapping[str, float]) -> Iterator[str]:
    largest = max(shares.values())
    for name, share in sorted(shares.items()):
        documents = read_documents(prepared, name, "train")
        random.Random(0).shuffle(documents)
        size = 0
        for document in documents:
            text = _text_of(document)
            size += len(text)
            yield text
            if size > BYTES_PER_SOURCE * share / largest:
                break


def train_tokenizer(prepared: Path, *, vocab: int, shares: Mapping[str, float] | None = None) -> Tokenizer:
    """shares: how much each source counts, as in the mix of a config; default: all of them alike."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    shares = shares or dict.fromkeys(source_names(prepared), 1.0)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(prepared, shares), trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that models.data wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json (usually the same)")
    parser.add_argument("--config", type=Path, required=True, help="its vocabulary size, its mix of sources")
    options = parser.parse_args()
    config = load_config(options.config)
    tokenizer = train_tokenizer(options.data, vocab=config.shape.vocab, shares=config.shares)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "tokenizer.json", tokenizer.to_str().encode("utf-8"))
    print(f"{tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
