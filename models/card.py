"""Step 8: the model card, written from the files that the other steps left.

    python -m models.card --data RUN --prepared PREPARED --model FILE.gguf --out CARD.md

Every number in the card is read from those files; the sentences around them stand here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from models.files import write_atomically

_INTRODUCTION = """\
# {name}

The language model that comes inside the package: {parameters:,} parameters, {size_mb:.1f} MB ({quantisation}), a
context of {positions} tokens. It chats a little in simple English about films, music and sport, tells very short
stories, says what it is, and stops by itself. It is there so that `wattwise run "Hi! How are you today?"` answers
on the first try, without a download. It knows nothing reliable about the world.

| | |
| --- | --- |
| layout | Llama, tied head: {layers} layers, width {width}, feed-forward {feed_forward} |
| attention | {heads} heads of {head_size}, {kv_heads} KV heads |
| tokenizer | byte-level BPE, {vocab:,} tokens, trained on the same text; chat template ChatML |
| trained on | {tokens:,} tokens, {minutes:.0f} minutes of a shared CPU, {tokens_per_second:,.0f} tokens/s |
| licence of the weights | Apache-2.0 |
| made by | the recipe in the repository's `models/`, config `{config}` |
"""

_LIMITS = """\
## Limits

- It is a toy beside any model you can download. Facts, names, numbers and dates in its replies are mostly
  invented. Do not rely on anything it says.
- English only. It cannot calculate, translate, program, follow long instructions, call tools or give advice.
- It learnt from chats between crowd workers and repeats their opinions on films, bands and teams as if it had
  them. Coarse conversations were left out of training by a word list, which is no guarantee.
- Old children's books carry the views and words of their time.
- The context is short: a conversation is full after a few dozen lines, and a new one has to be begun.

## A bigger one

Any GGUF file of a supported architecture works in its place, and `wattwise convert` makes one from a Hugging Face
folder: `wattwise plan model.gguf` says whether it fits this machine. `models/` holds configs for larger models of
this recipe.
"""


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _sources_table(prepared: Path, config: dict[str, Any]) -> str:
    """Who wrote the text, under which licence, and how often it was read."""
    tokens = _read_json(prepared / "packed" / "tokens.json")
    lines = [
        "## Data",
        "",
        "Read with credit and thanks. 2 % of every source was held out by a hash of the content.",
        "",
        "| source | licence | tokens | share of " + " / ".join(s["name"] for s in config["stages"]) + " | credit |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for row in _read_json(prepared / "documents" / "sources.json"):
        name = row["name"]
        shares = " / ".join(
            f"{stage['mix'].get(name, 0) / sum(stage['mix'].values()):.0%}" for stage in config["stages"]
        )
        lines.append(f"| {name} | {row['licence']} | {tokens[name]['train']:,} | {shares} | {row['credit']} |")
    return "\n".join([*lines, ""])


def _figures_table(evaluation: dict[str, Any], certificate: Path) -> str:
    lines = [
        "## Figures",
        "",
        "Held-out bits per byte of the trained weights before quantisation, lower is better. small_talk is combined",
        "from a fixed set of lines, so its held-out part is not independent. The chats are split by conversation,",
        "not by author, and authors repeat themselves.",
        "",
        "| source | held-out tokens | bits per byte | of the assistant's turns |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in evaluation["held_out"].items():
        own = row.get("assistant_bits_per_byte")
        lines.append(f"| {name} | {row['tokens']:,.0f} | {row['bits_per_byte']:.3f} | {own or '-'} |")
    agreement = _read_json(certificate)["logits"]
    lines += [
        "",
        f"What quantisation changes: KL divergence {agreement['kl_mean']:.1e} nats a token against the export,",
        f"first choice equal for {agreement['top1']:.1%} of {agreement['tokens']} tokens ({certificate.name}).",
    ]
    return "\n".join([*lines, ""])


def _transcripts(evaluation: dict[str, Any]) -> str:
    lines = [
        "## Replies",
        "",
        "Fixed prompts, seeds 0 to 4, temperature 0.7, top-p 0.9, at most 160 tokens; none left out. Greetings and",
        "questions about itself are like lines it was trained on; the others are not. `[...]`: cut at the limit.",
    ]
    prompt = ""
    for row in evaluation["replies"]:
        if row["prompt"] != prompt:
            prompt = row["prompt"]
            lines += ["", f"**{prompt}**", ""]
        text = " / ".join(row["reply"].split("\n"))
        lines.append(f"- seed {row['seed']}: {text}{'' if row['ended'] else ' [...]'}")
    return "\n".join([*lines, ""])


def card(run: Path, prepared: Path, model: Path, *, quantisation: str, config_file: str) -> str:
    config, evaluation = _read_json(run / "config.json"), _read_json(run / "evaluation.json")
    training = evaluation["training"]
    introduction = _INTRODUCTION.format(
        **{**config["shape"], **training},
        name=config["name"],
        parameters=evaluation["parameters"],
        size_mb=model.stat().st_size / 1e6,
        quantisation=quantisation,
        minutes=training["seconds"] / 60,
        tokens_per_second=training["tokens"] / training["seconds"],
        config=config_file,
    )
    parts = (
        introduction,
        _sources_table(prepared, config),
        _figures_table(evaluation, model.with_name(model.name + ".certificate.json")),
        _transcripts(evaluation),
        _LIMITS,
    )
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="run folder, evaluated")
    parser.add_argument("--prepared", type=Path, required=True, help="folder of the prepared sources")
    parser.add_argument("--model", type=Path, required=True, help="the converted file")
    parser.add_argument("--quantisation", default="q8_0")
    parser.add_argument("--config-file", default="models/configs/tiny.toml")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    text = card(
        options.data,
        options.prepared,
        options.model,
        quantisation=options.quantisation,
        config_file=options.config_file,
    )
    write_atomically(options.out, text.encode("utf-8"))


if __name__ == "__main__":
    main()
