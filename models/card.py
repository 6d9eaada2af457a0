"""Step 13: the model card, written from the files that the other steps left.

    python -m models.card --base HF_BASE --draft HF_DRAFT --prepared PREPARED --evaluation FOLDER \\
        --shipped sdk/wattwise/builtin --trained-on "two CPU cores" --config-base FILE --config-draft FILE

Writes CARD.md into the shipped folder. Every number in it is read from those files; the sentences around them
stand in `models/card_text.py`. `FOLDER` holds what models.evaluate, acceptance, tool_calls and transcripts wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import card_text
from models.configuration import ModelShape, load_config, shape_from_dict
from models.evaluate import ONNX_WEIGHTS
from models.files import write_atomically
from wattwise.sampling import SamplerParams

FULL_BASE, FULL_DRAFT = (Path(__file__).parent / "configs" / name for name in ("base.toml", "draft.toml"))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The files of the other steps. trained_on: in words, the machine that trained. configs: as a reader finds them."""

    base: Path
    draft: Path
    prepared: Path
    evaluation: Path
    shipped: Path
    trained_on: str
    config_base: str
    config_draft: str

    def recipe(self, part: str) -> dict[str, Any]:
        return _read_json((self.base if part == "base" else self.draft) / "recipe.json")

    def bits(self) -> dict[str, dict[str, Any]]:
        """By `part-weights-engine`."""
        return {path.stem: _read_json(path) for path in sorted((self.evaluation / "bits").glob("*.json"))}

    def evaluated(self, name: str) -> dict[str, Any]:
        return _read_json(self.evaluation / f"{name}.json")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """A Markdown table; the first `left` columns are words, the others numbers."""
    rule = ["---" if column < left else "---:" for column in range(len(head))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def _trained(recipe: dict[str, Any]) -> str:
    tokens, minutes = recipe["tokens"], recipe["seconds"] / 60
    return f"{tokens:,.0f} tokens in {minutes:.0f} minutes"


def _shape_rows(shape: ModelShape) -> list[list[str]]:
    return [
        ["layout", f"Llama, tied head: {shape.layers} layers, width {shape.width}, feed-forward {shape.feed_forward}"],
        ["attention", f"{shape.heads} heads of {shape.head_size}, {shape.kv_heads} KV heads"],
        ["context", f"{shape.positions} tokens"],
    ]


def introduction(inputs: Inputs) -> str:
    family, base = _read_json(inputs.shipped / "family.json"), inputs.recipe("base")
    row, full = family["builtin"], load_config(FULL_BASE).shape
    rows = [
        *_shape_rows(shape_from_dict(base["config"]["shape"])),
        [
            "tokenizer",
            f"byte-level BPE, {base['config']['shape']['vocab']:,} tokens, learnt from the same text; template ChatML",
        ],
        ["trained on", f"{inputs.trained_on}: {_trained(base)}"],
        ["licence of the weights", "CC BY-SA 4.0 (the code is Apache-2.0)"],
        ["made by", f"the recipe in the repository's `models/`, config `{inputs.config_base}`"],
    ]
    text = card_text.INTRODUCTION.format(
        name=row["name"],
        parameters=row["parameters"],
        size_mb=row["bytes"] / 1e6,
        quant=row["quant"],
        context=base["config"]["shape"]["positions"],
        trained_on=inputs.trained_on,
    )
    if row["parameters"] < full.parameters / 2:
        text += card_text.SMALL_SIZE.format(
            trained_on=inputs.trained_on,
            full_millions=full.parameters / 1e6,
            draft_millions=load_config(FULL_DRAFT).shape.parameters / 1e6,
        )
    return "\n".join([text, *table(("", ""), rows, left=2), ""])


def draft_section(inputs: Inputs) -> str:
    row, recipe = _read_json(inputs.shipped / "family.json")["builtin-draft"], inputs.recipe("draft")
    before = recipe["config"].get("before_distilling", {"tokens": 0, "seconds": 0})
    rows = [
        ["parameters", f"{row['parameters']:,}, {row['bytes'] / 1e6:.1f} MB ({row['quant']})"],
        *_shape_rows(shape_from_dict(recipe["config"]["shape"])),
        ["trained on", f"{inputs.trained_on}: {_trained(before)}, then {_trained(recipe)} of the base's own replies"],
        ["made by", f"config `{inputs.config_draft}`"],
    ]
    heading = [f"## The draft: {row['name']}", "", card_text.DRAFT, ""]
    return "\n".join([*heading, *table(("", ""), rows, left=2), ""])


def sources_section(inputs: Inputs) -> str:
    """Who wrote the text, under which licence, and how often it was read; those of no stage are left out."""
    tokens = _read_json(inputs.prepared / "packed" / "tokens.json")
    stages = inputs.recipe("base")["config"]["stages"]
    rows = []
    for row in _read_json(inputs.prepared / "documents" / "sources.json"):
        shares = [stage["mix"].get(row["name"], 0) / sum(stage["mix"].values()) for stage in stages]
        if any(shares):
            share = " / ".join(f"{share:.0%}" for share in shares)
            rows.append([row["name"], row["licence"], row["credit"], f"{tokens[row['name']]['train']:,}", share])
    head = ("source", "licence", "credit", "tokens", "share of " + " / ".join(stage["name"] for stage in stages))
    return "\n".join(["## Data and licence", "", card_text.DATA, "", *table(head, rows, left=3), ""])


def _variant_name(row: dict[str, Any]) -> str:
    weights = row["weights"] if row["engine"] != "onnx" else ONNX_WEIGHTS[row["weights"]]
    return f"{row['model']} {weights}, {row['engine']}"


def bits_section(inputs: Inputs) -> str:
    rows = sorted(
        inputs.bits().values(), key=lambda row: (row["model"], row["engine"] != "llamacpp", -row["file_bytes"])
    )
    names = list(rows[0]["held_out"]) if rows else []
    body = [
        [
            name,
            f"{rows[0]['held_out'][name]['tokens']:,.0f}",
            *(f"{r['held_out'][name]['bits_per_byte']:.3f}" for r in rows),
        ]
        for name in names
    ]
    text = next((row["text"] for row in rows if "text" in row), None)
    if text is not None:
        figures = (f"{row['text']['bits_per_byte']:.3f}" if "text" in row else "-" for row in rows)
        body.append([text["name"], f"{text['tokens']:,}", *figures])
    lines = ["## Bits per byte", "", card_text.BITS]
    if text is not None and text["bytes"] < 0.99 * text["of_bytes"]:
        lines += [f"Of {text['name']}, its first {text['bytes']:,} bytes of {text['of_bytes']:,} were read."]
    lines += ["", *table(("source", "tokens", *(_variant_name(row) for row in rows)), body)]
    lines += [""]
    for file in ("model.gguf", "draft.gguf"):
        agreement = _read_json(inputs.shipped / f"{file}.certificate.json")["logits"]
        lines += [
            f"{file} against what was trained: KL divergence {agreement['kl_mean']:.1e} nats a token, first choice "
            f"equal for {agreement['top1']:.1%} of {agreement['tokens']} tokens ({file}.certificate.json)."
        ]
    return "\n".join([*lines, ""])


def acceptance_section(inputs: Inputs) -> str:
    found = inputs.evaluated("acceptance")
    lines = ["## Acceptance of the draft", ""]
    if "skipped" in found:
        return "\n".join([*lines, f"Not measured: {found['skipped']}.", ""])
    first = next(iter(found["engines"].values()))["total"]
    lines += [card_text.ACCEPTANCE.format(dialogues=first["dialogues"], reply_tokens=found["reply_tokens"]), ""]
    rows = []
    for engine, result in found["engines"].items():
        for name, row in [("**all**", result["total"]), *result["sources"].items()]:
            runs = [f"{row['mean_accepted_run'][length]:.2f}" for length in ("2", "4", "8")]
            rows.append([engine, name, str(row["dialogues"]), str(row["tokens"]), f"{row['accepted']:.1%}", *runs])
    head = ("engine", "source", "dialogues", "tokens", "accepted", "run of 2", "run of 4", "run of 8")
    return "\n".join([*lines, *table(head, rows, left=2), ""])


def tool_section(inputs: Inputs) -> str:
    found = inputs.evaluated("tool_calls")
    lines = ["## Tool calls", ""]
    if "skipped" in found:
        return "\n".join([*lines, f"Not measured: {found['skipped']}.", ""])
    rows = [
        ["well-formed", f"{found['well_formed']:.1%}", found["with_constraint"]],
        ["right tool", f"{found['right_name']:.1%}", ""],
        ["right tool and every argument as in the data", f"{found['all_arguments']:.1%}", ""],
        ["the data's own calls, by the same judge: well-formed", f"{found['gold_well_formed']:.1%}", ""],
    ]
    problems = "; ".join(f"{what}: {count}" for what, count in found["problems"].items()) or "none"
    lines += [card_text.TOOL_CALLS.format(dialogues=found["dialogues"], engine=found["engine"]), ""]
    lines += table(("share of replies", "free", "with a JSON schema constraint"), rows)
    return "\n".join([*lines, "", f"What was wrong with the others: {problems}.", ""])


def _prompted(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    prompt = None
    for row in rows:
        if row["prompt"] != prompt:
            prompt = row["prompt"]
            lines += ["", f"**{prompt}**", ""]
        text = " / ".join(row["reply"].split("\n"))
        shown = f"`{text}`" if "<tool_call>" in text else text
        notes = [] if row["ended"] else ["[cut at the limit]"]
        notes += [f"[not a proper call: {row['problem']}]"] if row.get("problem") else []
        lines.append(" ".join([f"- seed {row['seed']}: {shown}", *notes]))
    return lines


def transcripts_section(inputs: Inputs) -> str:
    found, defaults = inputs.evaluated("transcripts"), SamplerParams()
    said = card_text.TRANSCRIPTS.format(
        temperature=defaults.temperature,
        top_k=defaults.top_k,
        top_p=defaults.top_p,
        min_p=defaults.min_p,
        engine=found["engine"],
    )
    tools = "\n".join(json.dumps(tool["function"]) for tool in found["tools"])
    lines = ["## Replies", "", said, *_prompted(found["openings"]), "", card_text.REQUESTS, "", "```json", tools, "```"]
    return "\n".join([*lines, *_prompted(found["requests"]), ""])


def card(inputs: Inputs) -> str:
    sections = (
        introduction, draft_section, sources_section, bits_section, acceptance_section, tool_section,
        transcripts_section,
    )  # fmt: skip
    return "\n".join([*(section(inputs) for section in sections), card_text.LIMITS])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="exported folder of the base")
    parser.add_argument("--draft", type=Path, required=True, help="exported folder of the draft")
    parser.add_argument("--prepared", type=Path, required=True, help="folder of the prepared sources")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder of the evaluations")
    parser.add_argument("--shipped", type=Path, required=True, help="folder that models.ship filled; gets CARD.md")
    parser.add_argument("--trained-on", default="two CPU cores", help="the machine, in words")
    parser.add_argument("--config-base", default="models/configs/mini.toml")
    parser.add_argument("--config-draft", default="models/configs/mini_draft.toml")
    inputs = Inputs(**vars(parser.parse_args(arguments)))
    write_atomically(inputs.shipped / "CARD.md", card(inputs).encode("utf-8"))


if __name__ == "__main__":
    main()
