"""Step 9: bits per byte of the held-out part of every source and of a foreign text, by weight type and engine.

    python -m models.evaluate --base HF_BASE --shipped sdk/wattwise/builtin --prepared PREPARED \\
        --text wiki.test.raw --out FOLDER

Runs the shipped files, and the base in other weight types (converted to `FOLDER/files`), on every engine that is
installed here (ONNX is lowered from the GGUF by wattwise itself). Writes one JSON file for each combination to
`FOLDER/bits`; those that exist are not measured again.

Bits per byte count a document's own text as the model reads it: the ChatML marks are predicted too, and their
bytes are counted. `assistant_bits_per_byte` counts only what the assistant wrote. Each document is read alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from models.dialogues import installed_engines, open_model
from models.files import write_atomically
from models.pack import Packed, open_packed
from wattwise.evaluation import evaluate, log_probabilities
from wattwise.model import Model
from wattwise_convert.api import convert

WEIGHTS = ("f16", "q8_0", "q4_0")
ONNX_WEIGHTS = {"f16": "fp16", "q8_0": "int8", "q4_0": "int4"}  # what lowering makes of them


def token_bytes(model: Model) -> np.ndarray:
    """Bytes of each token's text; a control token's are those of its name, as the packed text holds it."""
    tokenizer = model.tokenizer
    sizes = [len(tokenizer.token_bytes(token)) for token in range(len(tokenizer.vocabulary.tokens))]
    names = [len(name.encode("utf-8")) for name in tokenizer.vocabulary.tokens]
    return np.array([size or name for size, name in zip(sizes, names, strict=True)])


def bits_per_byte(model: Model, packed: Packed, *, max_tokens: int) -> dict[str, float]:
    """Both figures over held-out documents, until `max_tokens` have been read."""
    sizes = token_bytes(model)
    context = model.engine.kv.capacity_tokens
    nats, size = {"all": 0.0, "assistant": 0.0}, {"all": 0, "assistant": 0}
    read = 0
    for start, end in itertools.pairwise([*packed.starts.tolist(), len(packed.ids)]):
        if read >= max_tokens:
            break
        ids = packed.ids[start : min(end, start + context, start + max_tokens - read + 1)].astype(np.int64)
        if len(ids) < 2:
            continue
        targets = ids[1:]
        costs = -log_probabilities(model, ids.tolist())[np.arange(len(targets)), targets]
        own = packed.mask[start : start + len(ids)][1:].astype(bool)
        read += len(targets)
        for key, counted in (("all", np.ones_like(own)), ("assistant", own)):
            nats[key] += float(costs[counted].sum())
            size[key] += int(sizes[targets[counted]].sum())
    result = {"tokens": float(read), "bits_per_byte": nats["all"] / math.log(2) / max(1, size["all"])}
    if size["assistant"]:
        result["assistant_bits_per_byte"] = nats["assistant"] / math.log(2) / size["assistant"]
    return {key: round(value, 4) for key, value in result.items()}


def trained_sources(base: Path) -> list[str]:
    """The sources that the base has read, as its recipe says."""
    stages = json.loads((base / "recipe.json").read_text(encoding="utf-8"))["config"]["stages"]
    return sorted({name for stage in stages for name in stage["mix"]})


def check_vocabulary(model: Model, prepared: Path) -> None:
    tokens = model.tokenizer.vocabulary.tokens
    for token, number in Tokenizer.from_file(str(prepared / "tokenizer.json")).get_vocab().items():
        if number >= len(tokens) or tokens[number] != token:
            raise SystemExit(f"{prepared} was packed with another tokenizer: token {number} is {token!r} there")


def measure(path: Path, prepared: Path, text: Path | None, *, engine: str, options: argparse.Namespace) -> dict:
    result: dict[str, object] = {"engine": engine, "file_bytes": path.stat().st_size, "held_out": {}}
    with open_model(path, engine) as model:
        check_vocabulary(model, prepared)
        result["held_out"] = {
            name: bits_per_byte(model, open_packed(prepared, name, "held"), max_tokens=options.max_tokens)
            for name in trained_sources(options.base)
        }
        if text is not None:
            content = text.read_bytes()
            part = content[: options.text_bytes].decode("utf-8", "ignore")
            found = evaluate(model, part, window=min(1024, model.engine.kv.capacity_tokens))
            result["text"] = {
                "name": text.name,
                "bytes": len(part.encode("utf-8")),
                "of_bytes": len(content),
                "tokens": found.tokens,
                "bits_per_byte": round(found.bits_per_byte, 4),
            }
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder that models.export wrote from the base")
    parser.add_argument("--shipped", type=Path, required=True, help="folder that models.ship filled")
    parser.add_argument("--prepared", type=Path, required=True, help="folder with the packed held-out parts")
    parser.add_argument("--text", type=Path, help="a text of another kind, such as wiki.test.raw")
    parser.add_argument("--out", type=Path, required=True, help="folder for files/ and bits/")
    parser.add_argument("--max-tokens", type=int, default=15_000, help="held-out tokens per source")
    parser.add_argument("--text-bytes", type=int, default=200_000, help="how much of --text, from its beginning")
    parser.add_argument("--weights", nargs="+", default=WEIGHTS, help="types of the base beside the shipped one")
    options = parser.parse_args(arguments)
    for folder in ("files", "bits"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    for (part, quant, path), engine in itertools.product(files(options), installed_engines()):
        done = options.out / "bits" / f"{part}-{quant}-{engine}.json"
        if done.is_file():
            continue
        result = measure(path, options.prepared, options.text, engine=engine, options=options)
        write_atomically(done, json.dumps({"model": part, "weights": quant, **result}, indent=1).encode("utf-8"))
        print(json.dumps({done.stem: result["held_out"], "text": result.get("text")}), flush=True)


def files(options: argparse.Namespace) -> list[tuple[str, str, Path]]:
    """(model, weights, file) of all that is measured: the shipped ones first, the others made where missing."""
    family = json.loads((options.shipped / "family.json").read_text(encoding="utf-8"))
    found = [
        ("base", family["builtin"]["quant"], options.shipped / "model.gguf"),
        ("draft", family["builtin-draft"]["quant"], options.shipped / "draft.gguf"),
    ]
    for quant in options.weights:
        path = options.out / "files" / f"base-{quant}.gguf"
        if quant == family["builtin"]["quant"]:
            continue
        if not path.is_file():
            convert(options.base, path, quant=quant)
        found.append(("base", quant, path))
    return found


if __name__ == "__main__":
    main()
