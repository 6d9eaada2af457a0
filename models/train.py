"""Step 4: train a model through the stages of its config, from the last checkpoint if there is one.

    python -m models.train --config models/configs/tiny.toml --data FOLDER --out RUN [--stage NAME]

FOLDER is what `models.pack` filled, or raw sources, which are then prepared into RUN/prepared first. The
checkpoint `RUN/checkpoint.pt` is replaced as a whole every `--save-minutes` and at the end of each stage.
With `--minutes` the run of this command is cut off there, schedule and all: the learning rate falls to the
stage's end within it, so two minutes give a (poor) finished model too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from models import data, pack, tokenizer
from models.batches import IGNORED, Batches
from models.configuration import Config, Stage, load_config
from models.files import save_atomically, write_atomically
from models.model import Llama
from models.optimizer import Optimizers

CHECKPOINT = "checkpoint.pt"


def prepared_folder(folder: Path, config: Config, out: Path) -> Path:
    """`folder` itself if it is packed, else RUN/prepared made from it."""
    if (folder / "packed" / "tokens.json").is_file():
        return folder
    prepared = out / "prepared"
    if not (prepared / "packed" / "tokens.json").is_file():
        data.prepare(folder, prepared)
        trained = tokenizer.train_tokenizer(prepared, vocab=config.shape.vocab, shares=config.shares)
        write_atomically(prepared / "tokenizer.json", trained.to_str().encode("utf-8"))
        pack.pack(prepared, trained, prepared)
    return prepared


class Run:
    """The state that a checkpoint holds, and one step of it."""

    def __init__(self, config: Config, prepared: Path, out: Path, *, device: str, compiled: bool = False) -> None:
        self.config, self.prepared, self.out, self.device = config, prepared, out, device
        self.model = Llama(config.shape)
        self.model.initialise(config.seed)
        self.model.to(device)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.optimizers = Optimizers(self.model)
        self.stage_index, self.step, self.tokens, self.seconds = 0, 0, 0, 0.0

    def resume(self) -> bool:
        path = self.out / CHECKPOINT
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["shape"] != dataclasses.asdict(self.config.shape):
            raise ValueError(f"{path} holds a model of another shape; give another --out or remove it")
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.stage_index, self.step = state["stage_index"], state["step"]
        self.tokens, self.seconds = state["tokens"], state["seconds"]
        return True

    def save(self) -> None:
        state: dict[str, Any] = {
            "shape": dataclasses.asdict(self.config.shape),
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "stage_index": self.stage_index,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        save_atomically(self.out / CHECKPOINT, lambda path: torch.save(state, path))

    def train_step(self, stage: Stage, batches: Batches, *, rate: float) -> float:
        """One step; the mean loss in nats per counted token."""
        passes = batches.passes(self.step)
        counted = max(1, sum(int((targets != IGNORED).sum()) for _, targets in passes))
        total = 0.0
        for inputs, targets in passes:
            with torch.autocast(self.device, torch.bfloat16):
                hidden = self.forward(inputs.to(self.device)).flatten(0, 1)
                flat = targets.to(self.device).flatten()
                kept = flat != IGNORED
                if stage.loss_on == "assistant":  # the head is a fifth of the work: only where it counts
                    hidden, flat = hidden[kept], flat[kept]
                logits = self.model.logits(hidden)
            loss = F.cross_entropy(logits.float(), flat, ignore_index=IGNORED, reduction="sum") / counted
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizers.step(
            matrix_rate=stage.matrix_rate * rate,
            other_rate=stage.other_rate * rate,
            weight_decay=stage.weight_decay,
        )
        self.step += 1
        self.tokens += stage.tokens_per_step
        return total


def adapt_threads(allowed: int) -> None:
    """With 0, use a second core only while nobody else wants it."""
    if allowed > 0:
        return
    others = os.getloadavg()[0] - torch.get_num_threads()
    torch.set_num_threads(2 if others < 0.6 and (os.cpu_count() or 1) > 1 else 1)


def run_stage(run: Run, stage: Stage, options: argparse.Namespace) -> bool:
    """Train to the end of the stage or of the allowed time; whether the stage was finished."""
    batches = Batches(run.prepared, stage, seed=run.config.seed)
    started = last_save = last_line = time.monotonic()
    limit_s = options.minutes * 60 if options.minutes else float("inf")
    first_step, losses = run.step, []
    last_step = min(stage.steps, options.until_step or stage.steps)
    log = (run.out / "log.jsonl").open("a", encoding="utf-8")
    with log:
        while run.step < last_step:
            elapsed = time.monotonic() - started
            if elapsed >= limit_s:
                break
            position = run.step
            if limit_s != float("inf"):
                left = (stage.steps - first_step) * elapsed / limit_s
                position = max(position, int(first_step + left))
            step_started = time.monotonic()
            losses.append(run.train_step(stage, batches, rate=stage.rate_at(position)))
            run.seconds += time.monotonic() - step_started
            now = time.monotonic()
            if now - last_line > options.log_seconds or run.step == last_step:
                row = {
                    "stage": stage.name,
                    "step": run.step,
                    "steps": stage.steps,
                    "loss": round(sum(losses) / len(losses), 4),
                    "rate": round(stage.rate_at(position), 4),
                    "tokens": run.tokens,
                    "tokens_per_second": round(len(losses) * stage.tokens_per_step / (now - last_line)),
                    "threads": torch.get_num_threads(),
                }
                print(json.dumps(row), file=log, flush=True)
                print(json.dumps(row), flush=True)
                losses, last_line = [], now
                adapt_threads(options.threads)
            if now - last_save > options.save_minutes * 60:
                run.save()
                last_save = now
    return run.step >= stage.steps or time.monotonic() - started >= limit_s


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="prepared folder, or raw sources, or *.txt files")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and log")
    parser.add_argument("--stage", help="stop after this stage; default: all of them")
    parser.add_argument("--minutes", type=float, help="fit what is left of the current stage into this time")
    parser.add_argument("--until-step", type=int, help="stop at this step of the current stage, schedule unchanged")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: one, or two while the machine idles")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="a tenth to a fifth faster on CPUs; needs g++")
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument("--log-seconds", type=float, default=20.0)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    config = load_config(options.config)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads or 1)
    if options.compile and not options.threads:
        raise SystemExit("--compile needs --threads: compiled code has a fixed number of them")
    prepared = prepared_folder(options.data, config, options.out)
    vocab = Tokenizer.from_file(str(prepared / "tokenizer.json")).get_vocab_size()
    if vocab > config.shape.vocab:
        raise SystemExit(f"the tokenizer has {vocab} tokens, the model only {config.shape.vocab}")
    run = Run(config, prepared, options.out, device=options.device, compiled=options.compile)
    resumed = run.resume()
    write_atomically(options.out / "config.json", json.dumps(config.to_dict(), indent=1).encode("utf-8"))
    write_atomically(options.out / "tokenizer.json", (prepared / "tokenizer.json").read_bytes())
    print(f"{config.name}: {config.shape.parameters:,} parameters, {'resumed' if resumed else 'new'}", flush=True)
    while run.stage_index < len(config.stages):
        stage = config.stages[run.stage_index]
        finished = run_stage(run, stage, options)
        if not finished:
            run.save()
            break
        run.stage_index, run.step = run.stage_index + 1, 0
        run.save()
        if stage.name == options.stage:
            break


if __name__ == "__main__":
    main()
