"""Step 6: held-out bits per byte of every source, and replies to fixed prompts with fixed seeds.

    python -m models.evaluate --data RUN --prepared PREPARED --out FILE.json

Bits per byte count the documents' own text: the ChatML marks are predicted too, and their bytes are counted,
so the figure is the cost of the text as the model reads it. `assistant_bits_per_byte` counts only what the
assistant wrote. Replies are sampled at temperature 0.7, top-p 0.9; nothing is chosen by hand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from models.data import source_names
from models.documents import DOCUMENT_END, TURN_END, TURN_START
from models.export import load_weights
from models.files import write_atomically
from models.model import Llama, sample
from models.pack import Packed, open_packed
from models.train import CHECKPOINT

PROMPTS = (
    "Hi! How are you today?",
    "What is your name?",
    "Do you like Star Wars?",
    "What did you think of the football game last night?",
    "Tell me a story about a little dog.",
    "My brother is coming to visit me tomorrow.",
    "What is the capital of France?",
)
SEEDS = range(5)


def load_model(run: Path) -> Llama:
    shape, weights = load_weights(run)
    model = Llama(shape)
    model.load_state_dict(weights)
    return model.eval()


@torch.no_grad()
def document_costs(model: Llama, ids: np.ndarray) -> np.ndarray:
    """Nats of every token but the first of a document, cut at the model's context."""
    tokens = torch.from_numpy(ids[: model.shape.positions + 1].astype(np.int64))
    logits = model.logits(model(tokens[None, :-1])[0]).float()
    return F.cross_entropy(logits, tokens[1:], reduction="none").numpy()


def bits_per_byte(model: Llama, packed: Packed, tokenizer: Tokenizer, *, max_tokens: int) -> dict[str, float]:
    """Both figures over whole held-out documents, until `max_tokens` have been read."""
    bounds = [*packed.starts.tolist(), len(packed.ids)]
    nats = {"all": 0.0, "assistant": 0.0}
    size = {"all": 0, "assistant": 0}
    read = 0
    for start, end in itertools.pairwise(bounds):
        if read >= max_tokens:
            break
        ids = packed.ids[start : min(end, start + model.shape.positions + 1)]
        if len(ids) < 2:
            continue
        mask = packed.mask[start : start + len(ids)][1:].astype(bool)
        costs = document_costs(model, ids)
        read += len(costs)
        nats["all"] += float(costs.sum())
        nats["assistant"] += float(costs[mask].sum())
        size["all"] += len(tokenizer.decode(ids[1:].tolist(), skip_special_tokens=False).encode("utf-8"))
        own = ids[1:][mask].tolist()
        size["assistant"] += len(tokenizer.decode(own, skip_special_tokens=False).encode("utf-8"))
    result = {"tokens": float(read), "bits_per_byte": nats["all"] / math.log(2) / max(1, size["all"])}
    if size["assistant"]:
        result["assistant_bits_per_byte"] = nats["assistant"] / math.log(2) / size["assistant"]
    return {key: round(value, 4) for key, value in result.items()}


def reply(model: Llama, tokenizer: Tokenizer, prompt: str, *, seed: int, limit: int = 160) -> dict[str, object]:
    text = f"{TURN_START}user\n{prompt}{TURN_END}\n{TURN_START}assistant\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    stop = {tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(DOCUMENT_END)}
    generated = sample(model, ids, stop=stop, limit=limit, temperature=0.7, top_p=0.9, seed=seed)
    ended = len(generated) < limit and len(ids) + len(generated) < model.shape.positions
    return {"prompt": prompt, "seed": seed, "reply": tokenizer.decode(generated), "ended": ended}


def training_effort(run: Path) -> dict[str, float]:
    state = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    return {"tokens": state["tokens"], "seconds": round(state["seconds"], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="run folder of models.train")
    parser.add_argument("--prepared", type=Path, required=True, help="folder with the packed held-out parts")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--max-tokens", type=int, default=20_000, help="held-out tokens per source")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.data)
    tokenizer = Tokenizer.from_file(str(options.data / "tokenizer.json"))
    figures = {
        name: bits_per_byte(
            model, open_packed(options.prepared, name, "held"), tokenizer, max_tokens=options.max_tokens
        )
        for name in source_names(options.prepared)
    }
    replies = [reply(model, tokenizer, prompt, seed=seed) for prompt in PROMPTS for seed in SEEDS]
    result = {
        "parameters": model.shape.parameters,
        "training": training_effort(options.data),
        "held_out": figures,
        "replies": replies,
    }
    write_atomically(options.out, json.dumps(result, indent=1, ensure_ascii=False).encode("utf-8"))
    print(json.dumps(figures, indent=1))
    for row in replies:
        print(f"[{row['seed']}] {row['prompt']} -> {row['reply']}{'' if row['ended'] else ' ...'}")


if __name__ == "__main__":
    main()
