"""Step 2: a byte-level BPE with GPT-2's way of cutting words, learnt from the training part.

    python -m models.tokenizer --data PREPARED --out PREPARED --vocab 3072

GPT-2's pattern because every runtime knows it by name. The ChatML marks and the tool-call marks are single
tokens that text cannot spell by accident. Writes `PREPARED/tokenizer.json`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.data import read_documents, source_names
from models.documents import SPECIAL_TOKENS
from models.files import write_atomically

BYTES_PER_SOURCE = 6_000_000  # enough for a few thousand merges; one large source must not drown the rest


def _texts(prepared: Path) -> Iterator[str]:
    for name in source_names(prepared):
        documents = read_documents(prepared, name, "train")
        random.Random(0).shuffle(documents)
        size = 0
        for document in documents:
            text = "\n".join(turn.content for turn in document.turns) or document.text
            size += len(text)
            yield text
            if size > BYTES_PER_SOURCE:
                break


def train_tokenizer(prepared: Path, *, vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(prepared), trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that models.data wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json (usually the same)")
    parser.add_argument("--vocab", type=int, default=3072)
    options = parser.parse_args()
    tokenizer = train_tokenizer(options.data, vocab=options.vocab)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "tokenizer.json", tokenizer.to_str().encode("utf-8"))
    print(f"{tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
