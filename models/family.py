"""All steps in their order: from a folder of data to the shipped pair of models, their figures and their card.

    python -m models.family --config-base models/configs/mini.toml --config-draft models/configs/mini_draft.toml \\
        --data FOLDER --out RUN [--text wiki.test.raw] [--ship sdk/wattwise/builtin] [--minutes N]

FOLDER is prepared already (`models.pack`), or holds the sources, or any `*.txt` files. A step that is finished is
not done again, and training goes on from its last checkpoint: start the same command again after an interruption.
With `--minutes` the training steps are squeezed into about that time, with figures from a small part of the data.
Without `--ship` the files go to RUN/shipped, and the package keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models import acceptance, card, distill, evaluate, export, ship, tool_calls, train, transcripts
from models.configuration import Config, load_config
from models.files import write_atomically
from models.train import CHECKPOINT, prepared_folder

SHARES = {"base": 0.55, "draft": 0.2, "distill": 0.25}  # of --minutes
_QUICK = {  # figures that show that the steps work, where minutes do not allow more
    "evaluate": ("--max-tokens", "300", "--text-bytes", "2000", "--weights", "q8_0"),
    "acceptance": ("--dialogues", "6", "--reply-tokens", "24"),
    "tool_calls": ("--dialogues", "6", "--reply-tokens", "48"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where everything lies."""

    config_base: Path
    config_draft: Path
    data: Path
    out: Path
    shipped: Path
    text: Path | None
    minutes: float | None
    threads: int
    trained_on: str

    def folder(self, name: str) -> Path:
        return self.out / name

    def once(self, step: str, work: Callable[[], object]) -> None:
        """Do a step unless a mark says that it is done."""
        mark = self.out / "done" / step
        if mark.is_file():
            print(f"{step}: done before", flush=True)
            return
        print(f"{step}: begins", flush=True)
        work()
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(mark, b"")


def finished_stages(run: Path) -> int:
    """How many stages the run's checkpoint has behind it."""
    path = run / CHECKPOINT
    return torch.load(path, map_location="cpu", weights_only=True)["stage_index"] if path.is_file() else 0


def train_all(family: Family, config_file: Path, config: Config, run: Path, *, share: float) -> None:
    """Every stage, one command each, so that each has its part of the minutes."""
    total = sum(stage.tokens for stage in config.stages)
    for number, stage in enumerate(config.stages):
        if finished_stages(run) > number:
            continue
        words = ["--config", str(config_file), "--data", str(family.data), "--out", str(run), "--stage", stage.name]
        words += ["--threads", str(family.threads)] if family.threads else []
        if family.minutes:
            words += ["--minutes", str(family.minutes * share * stage.tokens / total)]
        _command(train.main, "models.train", words)


def _command(main: Callable[[], None], name: str, words: Sequence[str]) -> None:
    """A command of this package in this process: torch is loaded once."""
    before = sys.argv
    sys.argv = [name, *words]
    try:
        main()
    finally:
        sys.argv = before


def distil(family: Family) -> None:
    words = ["--config", str(family.config_draft), "--teacher", str(family.folder("base"))]
    words += ["--student", str(family.folder("draft")), "--data", str(family.data)]
    words += ["--out", str(family.folder("distilled"))]
    words += ["--threads", str(family.threads)] if family.threads else []
    words += ["--minutes", str(family.minutes * SHARES["distill"])] if family.minutes else []
    distill.main(words)


def measure(family: Family) -> None:
    """Figures and transcripts, each in a file of its own."""
    out, quick = family.folder("evaluation"), _QUICK if family.minutes else {}
    base, prepared = str(family.folder("hf-base")), str(family.data)
    model, drafter = str(family.shipped / "model.gguf"), str(family.shipped / "draft.gguf")
    out.mkdir(parents=True, exist_ok=True)

    def to(name: str) -> list[str]:
        return ["--out", str(out / f"{name}.json"), *quick.get(name, ())]

    words = ["--base", base, "--shipped", str(family.shipped), "--prepared", prepared, "--out", str(out)]
    words += ["--text", str(family.text)] if family.text else []
    family.once("evaluate", lambda: evaluate.main([*words, *quick.get("evaluate", ())]))
    pair = ["--target", model, "--draft", drafter, "--config", str(family.config_base), "--prepared", prepared]
    family.once("acceptance", lambda: acceptance.main([*pair, *to("acceptance")]))
    called = ["--model", model, "--prepared", prepared]
    family.once("tool_calls", lambda: tool_calls.main([*called, *to("tool_calls")]))
    family.once("transcripts", lambda: transcripts.main(["--model", model, *to("transcripts")]))


def make(family: Family) -> None:
    base, draft = load_config(family.config_base), load_config(family.config_draft)
    run, small, distilled = family.folder("base"), family.folder("draft"), family.folder("distilled")
    hf_base, hf_draft = family.folder("hf-base"), family.folder("hf-draft")
    family.once("base", lambda: train_all(family, family.config_base, base, run, share=SHARES["base"]))
    family.once("draft", lambda: train_all(family, family.config_draft, draft, small, share=SHARES["draft"]))
    family.once("distill", lambda: distil(family))
    family.once("export", lambda: [export.main(["--data", str(a), "--out", str(b)]) for a, b in (
        (run, hf_base), (distilled, hf_draft))])  # fmt: skip
    folders = ["--base", str(hf_base), "--draft", str(hf_draft)]
    family.once("ship", lambda: ship.main([*folders, "--out", str(family.shipped)]))
    measure(family)
    words = [*folders, "--prepared", str(family.data), "--evaluation", str(family.folder("evaluation"))]
    words += ["--shipped", str(family.shipped), "--trained-on", family.trained_on]
    words += ["--config-base", str(family.config_base), "--config-draft", str(family.config_draft)]
    card.main(words)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-base", type=Path, required=True)
    parser.add_argument("--config-draft", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="prepared folder, or raw sources, or *.txt files")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that is made on the way")
    parser.add_argument("--ship", type=Path, help="folder of the built-in models; default: RUN/shipped")
    parser.add_argument("--text", type=Path, help="a text of another kind to measure on, such as wiki.test.raw")
    parser.add_argument("--minutes", type=float, help="fit the training into about this time")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: as each step sees fit")
    parser.add_argument("--trained-on", default="CPU cores", help="the machine, in words, for the card")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    draft = load_config(options.config_draft)
    base = load_config(options.config_base)
    if draft.shape.vocab != base.shape.vocab:
        raise SystemExit(f"the base has {base.shape.vocab} tokens, the draft {draft.shape.vocab}; they share one list")
    family = Family(
        config_base=options.config_base,
        config_draft=options.config_draft,
        data=prepared_folder(options.data, base, options.out),
        out=options.out,
        shipped=options.ship or options.out / "shipped",
        text=options.text,
        minutes=options.minutes,
        threads=options.threads,
        trained_on=options.trained_on,
    )
    make(family)
    print(json.dumps({"card": str(family.shipped / "CARD.md")}))


if __name__ == "__main__":
    main()
