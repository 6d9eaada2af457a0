"""Step 3: documents as token ids in flat files that training maps into memory.

    python -m models.pack --data PREPARED --out PREPARED

For each source and part: `packed/<source>.<part>.ids` (uint16), `.mask` (uint8, 1 where the assistant wrote)
and `.starts` (uint32, where each document begins). Every document ends with `<|endoftext|>`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from models.data import read_documents, source_names
from models.documents import DOCUMENT_END, Document
from models.files import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One part of one source, mapped from disk."""

    ids: np.ndarray
    mask: np.ndarray
    starts: np.ndarray


def encode(document: Document, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids and mask of one document. Pieces are encoded one by one, as the template's marks divide them."""
    ids: list[int] = []
    mask: list[int] = []
    for piece, by_assistant in document.pieces():
        encoded = tokenizer.encode(piece, add_special_tokens=False).ids
        ids += encoded
        mask += [int(by_assistant)] * len(encoded)
    ids.append(tokenizer.token_to_id(DOCUMENT_END))
    mask.append(0)
    return ids, mask


def pack(prepared: Path, tokenizer: Tokenizer, out: Path) -> dict[str, dict[str, int]]:
    folder = out / "packed"
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.get_vocab_size() > 65536:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens do not fit the packed files' uint16")
    sizes: dict[str, dict[str, int]] = {}
    for name in source_names(prepared):
        for part in ("train", "held"):
            ids: list[int] = []
            mask: list[int] = []
            starts: list[int] = []
            for document in read_documents(prepared, name, part):
                starts.append(len(ids))
                document_ids, document_mask = encode(document, tokenizer)
                ids += document_ids
                mask += document_mask
            write_atomically(folder / f"{name}.{part}.ids", np.asarray(ids, dtype="<u2").tobytes())
            write_atomically(folder / f"{name}.{part}.mask", np.asarray(mask, dtype=np.uint8).tobytes())
            write_atomically(folder / f"{name}.{part}.starts", np.asarray(starts, dtype="<u4").tobytes())
            sizes.setdefault(name, {})[part] = len(ids)
    write_atomically(folder / "tokens.json", json.dumps(sizes, indent=1).encode("utf-8"))
    return sizes


def open_packed(prepared: Path, name: str, part: str) -> Packed:
    stem = prepared / "packed" / f"{name}.{part}"

    def mapped(suffix: str, dtype: str) -> np.ndarray:
        path = stem.with_name(stem.name + suffix)
        if not path.is_file():
            raise FileNotFoundError(f"no packed source {name!r} in {prepared}; the mix of the config names it")
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)

    return Packed(ids=mapped(".ids", "<u2"), mask=mapped(".mask", "u1"), starts=mapped(".starts", "<u4"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that models.data and models.tokenizer wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for packed/ (usually the same)")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.data / "tokenizer.json"))
    print(json.dumps(pack(options.data, tokenizer, options.out)))


if __name__ == "__main__":
    main()
