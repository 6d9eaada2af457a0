"""Step 6: a draft model learns to predict what the base model says, so that its proposals are accepted.

    python -m models.distill --config CONFIG --teacher RUN_BASE --student RUN_DRAFT --data PREPARED --out RUN

The teacher answers beginnings of training conversations (`models/replies.py`, kept in `RUN/samples`). Then the
student is trained on these replies: KL divergence from the teacher's full distribution, at temperature 1, on every
token that an assistant wrote, and a small share of cross entropy on the teacher's first choice, which is what
greedy verification compares. `RUN/checkpoint.pt` has the form that `models.train` writes. The `[distill]` table
of the config holds the settings. With `--minutes`, answering and training are fitted into that time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from models.configuration import Config, load_config
from models.export import end_tokens, load_model, training_effort
from models.files import save_atomically, write_atomically
from models.model import Llama
from models.optimizer import Optimizers
from models.replies import EARLIER_TURN, REPLY, ReplySettings, Sample, make_samples, read_samples
from models.train import CHECKPOINT

_BUCKET_ROWS = 512  # rows sorted by length together: less padding, yet every pass has its own mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """The `[distill]` table. answering_share: part of `--minutes` for the teacher's replies.

    earlier_weight: what a token of an earlier turn, written by the data, counts against one of the teacher's reply.
    greedy_weight: what the cross entropy on the teacher's first choice counts against the KL divergence.
    """

    prompts: int = 24_000
    prompt_tokens: int = 400
    reply_tokens: int = 128
    temperature: float = 0.7
    batch_rows: int = 128
    shard_prompts: int = 256
    answering_share: float = 0.4
    tokens: int = 12_000_000
    tokens_per_step: int = 8192
    tokens_per_pass: int = 4096
    warmup_steps: int = 10
    rate_to: float = 0.02
    matrix_rate: float = 0.01
    other_rate: float = 1.5e-3
    earlier_weight: float = 0.3
    greedy_weight: float = 0.1
    mix: dict[str, float] = dataclasses.field(default_factory=dict)  # default: that of the last stage

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.tokens_per_step)

    def rate_at(self, step: int) -> float:
        """The factor on the learning rates: a short warm-up, then a straight line down."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warm * (1.0 + (self.rate_to - 1.0) * min(1.0, step / self.steps))


def load_settings(path: Path) -> DistillSettings:
    with path.open("rb") as stream:
        return DistillSettings(**tomllib.load(stream).get("distill", {}))


class Passes:
    """Samples in passes of about equal size, as a pure function of seed, epoch and position."""

    def __init__(self, samples: Sequence[Sample], *, tokens_per_pass: int, seed: int) -> None:
        self._samples, self._most, self._seed = samples, tokens_per_pass, seed
        self._lengths = np.array([len(sample.ids) for sample in samples])

    def _epoch(self, number: int) -> list[list[int]]:
        rng = np.random.default_rng([self._seed, 1, number])
        order = rng.permutation(len(self._samples))
        passes: list[list[int]] = []
        for first in range(0, len(order), _BUCKET_ROWS):
            bucket = order[first : first + _BUCKET_ROWS]
            rows: list[int] = []
            for index in bucket[np.argsort(-self._lengths[bucket], kind="stable")].tolist():
                longest = self._lengths[rows[0]] if rows else 0
                if rows and (len(rows) + 1) * longest > self._most:
                    passes.append(rows)
                    rows = []
                rows.append(index)
            passes.append(rows)
        return [passes[index] for index in rng.permutation(len(passes))]

    def from_position(self, position: int) -> Iterator[list[Sample]]:
        """The passes from this one on, epoch after epoch, without end."""
        epoch = 0
        while True:
            passes = self._epoch(epoch)
            for rows in passes[position:]:
                yield [self._samples[row] for row in rows]
            position, epoch = max(0, position - len(passes)), epoch + 1


def padded(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Ids and marks [rows, longest]; what is padded is marked as given, and comes last, where it changes nothing."""
    longest = max(len(sample.ids) for sample in samples)
    ids, marks = np.zeros((len(samples), longest), np.int64), np.zeros((len(samples), longest), np.int64)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)], marks[row, : len(sample.ids)] = sample.ids, sample.marks
    return torch.from_numpy(ids), torch.from_numpy(marks)


class Distillation:
    """Teacher, student, and the state that a checkpoint holds."""

    def __init__(self, settings: DistillSettings, teacher: Llama, student: Llama, out: Path, *, device: str) -> None:
        self.settings, self.out, self.device = settings, out, device
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.student = student.to(device)
        self.optimizers = Optimizers(self.student)
        self.step, self.passes, self.tokens, self.seconds, self.finished = 0, 0, 0, 0.0, False

    def resume(self) -> bool:
        path = self.out / CHECKPOINT
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["shape"] != dataclasses.asdict(self.student.shape):
            raise ValueError(f"{path} holds a model of another shape; give another --out or remove it")
        self.student.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.step, self.passes, self.finished = state["step"], state["passes"], state["finished"]
        self.tokens, self.seconds = state["tokens"], state["seconds"]
        return True

    def save(self) -> None:
        state: dict[str, Any] = {
            "shape": dataclasses.asdict(self.student.shape),
            "model": self.student.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            **{name: getattr(self, name) for name in ("step", "passes", "finished", "tokens", "seconds")},
        }
        save_atomically(self.out / CHECKPOINT, lambda path: torch.save(state, path))

    def pass_loss(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor, float]:
        """Sums over the counted tokens: loss, weight; hits of the first choice and number of the reply's tokens."""
        ids, marks = (tensor.to(self.device) for tensor in padded(samples))
        marks = marks[:, 1:]
        counted = marks > 0
        weight = torch.where(marks == EARLIER_TURN, self.settings.earlier_weight, 1.0)[counted]
        with torch.autocast(self.device, torch.bfloat16):
            with torch.no_grad():
                truth = self.teacher.logits(self.teacher(ids[:, :-1])[counted])
            guess = self.student.logits(self.student(ids[:, :-1])[counted])
        truth, guess = torch.log_softmax(truth.float(), -1), torch.log_softmax(guess.float(), -1)
        kl = F.kl_div(guess, truth, reduction="none", log_target=True).sum(-1)
        best = truth.argmax(-1)
        greedy = F.nll_loss(guess, best, reduction="none")
        is_reply = marks[counted] == REPLY
        hits = ((guess.argmax(-1) == best) & is_reply).sum()
        loss = (weight * (kl + self.settings.greedy_weight * greedy)).sum()
        return loss, weight.sum(), hits, float(is_reply.sum())

    def train_step(self, batches: Sequence[Sequence[Sample]], *, rate: float) -> tuple[float, float]:
        """One step over the passes; mean loss, and how often the two agree on the replies' tokens."""
        self.student.train()
        total, weights, hits, replied = 0.0, 0.0, 0.0, 0.0
        for samples in batches:
            loss, weight, hit, tokens = self.pass_loss(samples)
            loss.backward()
            total, weights = total + float(loss.detach()), weights + float(weight)
            hits, replied = hits + float(hit), replied + tokens
            self.tokens += sum(len(sample.ids) for sample in samples)
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                parameter.grad /= max(weights, 1e-9)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        settings = self.settings
        self.optimizers.step(
            matrix_rate=settings.matrix_rate * rate, other_rate=settings.other_rate * rate, weight_decay=0.0
        )
        self.step, self.passes = self.step + 1, self.passes + len(batches)
        return total / max(weights, 1e-9), hits / max(replied, 1.0)


def train(run: Distillation, passes: Passes, *, limit_s: float, options: argparse.Namespace) -> None:
    """To the last step, or within the time: then the schedule is squeezed into it."""
    settings = run.settings
    per_step = max(1, settings.tokens_per_step // settings.tokens_per_pass)
    upcoming = passes.from_position(run.passes)
    began = last_save = last_line = time.monotonic()
    first_step, first_tokens, losses = run.step, run.tokens, []
    last_step = min(settings.steps, options.until_step or settings.steps)
    with (run.out / "log.jsonl").open("a", encoding="utf-8") as log:
        while run.step < last_step and (elapsed := time.monotonic() - began) < limit_s:
            position = run.step
            if limit_s != float("inf"):
                position = max(position, int(first_step + (settings.steps - first_step) * elapsed / limit_s))
            started = time.monotonic()
            losses.append(run.train_step([next(upcoming) for _ in range(per_step)], rate=settings.rate_at(position)))
            now = time.monotonic()
            run.seconds += now - started
            if now - last_line > options.log_seconds or run.step == last_step:
                loss, agreement = np.mean(losses, axis=0)
                row = {
                    "stage": "distill",
                    "step": run.step,
                    "steps": settings.steps,
                    "loss": round(float(loss), 4),
                    "agreement": round(float(agreement), 4),
                    "rate": round(settings.rate_at(position), 4),
                    "tokens": run.tokens,
                    "tokens_per_second": round((run.tokens - first_tokens) / (now - last_line)),
                }
                print(json.dumps(row), file=log, flush=True)
                print(json.dumps(row), flush=True)
                losses, last_line, first_tokens = [], now, run.tokens
            if now - last_save > options.save_minutes * 60:
                run.save()
                last_save = now
    run.finished = run.step >= settings.steps or limit_s != float("inf")
    run.save()


def reply_settings(settings: DistillSettings, config: Config) -> ReplySettings:
    """The part of the settings that is about the teacher's replies; a prompt leaves at least half the context."""
    return ReplySettings(
        mix=settings.mix or config.stages[-1].mix,
        seed=config.seed,
        prompts=settings.prompts,
        prompt_tokens=min(settings.prompt_tokens, config.shape.positions // 2),
        reply_tokens=settings.reply_tokens,
        temperature=settings.temperature,
        batch_rows=settings.batch_rows,
        shard_prompts=settings.shard_prompts,
    )


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the draft's config, with its [distill] table")
    parser.add_argument("--teacher", type=Path, required=True, help="run folder of the base model")
    parser.add_argument("--student", type=Path, required=True, help="run folder of the draft as it was trained")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder")
    parser.add_argument("--out", type=Path, required=True, help="run folder of the distilled draft")
    parser.add_argument("--minutes", type=float, help="fit answering and training into this time")
    parser.add_argument("--until-step", type=int, help="stop at this step, schedule unchanged")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: all cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-minutes", type=float, default=3.0)
    parser.add_argument("--log-seconds", type=float, default=20.0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    config, settings = load_config(options.config), load_settings(options.config)
    tokenizer_json = (options.teacher / "tokenizer.json").read_bytes()
    if (options.student / "tokenizer.json").read_bytes() != tokenizer_json:
        raise SystemExit("teacher and student have different tokenizers; a draft needs that of its target")
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "tokenizer.json", tokenizer_json)
    described = {
        **config.to_dict(),
        "distill": dataclasses.asdict(settings),
        "before_distilling": training_effort(options.student),
    }
    write_atomically(options.out / "config.json", json.dumps(described, indent=1).encode("utf-8"))
    run = Distillation(
        settings, load_model(options.teacher), load_model(options.student), options.out, device=options.device
    )
    if run.teacher.shape.positions > run.student.shape.positions:
        raise SystemExit("the teacher's context is longer than the student's; its replies would not fit")
    resumed = run.resume()
    print(f"{config.name}: {run.student.shape.parameters:,} parameters, {'resumed' if resumed else 'new'}", flush=True)
    limit_s = options.minutes * 60 if options.minutes else float("inf")
    began, stop = time.monotonic(), end_tokens(Tokenizer.from_file(str(options.teacher / "tokenizer.json")))
    for row in make_samples(
        run.teacher,
        options.data,
        options.out / "samples",
        reply_settings(settings, config),
        stop=stop,
        limit_s=limit_s * settings.answering_share,
    ):
        print(json.dumps(row), flush=True)
    if run.finished:
        return
    samples = read_samples(options.out / "samples")
    passes = Passes(samples, tokens_per_pass=settings.tokens_per_pass, seed=config.seed)
    train(run, passes, limit_s=max(1.0, limit_s - (time.monotonic() - began)), options=options)


if __name__ == "__main__":
    main()
