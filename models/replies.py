"""What the teacher answers: the material that a draft model is distilled from.

A prompt is the beginning of a training conversation up to one of the assistant's turns; where no source of the mix
has conversations, it is the beginning of a text. The teacher answers half of them with its likeliest tokens and
half by sampling, in shards that are whole files or not there. Shard n is a pure function of config and number, so
an interrupted run goes on with the next one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.files import save_atomically, write_atomically
from models.model import Llama
from models.pack import Packed, open_packed
from models.sampling import Prompt, generate

GIVEN, EARLIER_TURN, REPLY = 0, 1, 2  # marks of a sample's tokens
_TEXT_PROMPT_TOKENS = 24
_DONE = "done.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplySettings:
    """mix: shares of the sources. prompts: how many at most. limits in tokens. batch_rows: prompts answered at once."""

    mix: dict[str, float]
    seed: int
    prompts: int
    prompt_tokens: int
    reply_tokens: int
    temperature: float
    batch_rows: int
    shard_prompts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt with the teacher's reply; marks say which token is which."""

    ids: np.ndarray
    marks: np.ndarray


class Prompts:
    """Draws beginnings of training documents."""

    def __init__(self, prepared: Path, settings: ReplySettings) -> None:
        packed = {name: open_packed(prepared, name, "train") for name in sorted(settings.mix)}
        spoken = {name: source for name, source in packed.items() if bool(source.mask.any())}
        self.are_text = not spoken
        self._sources: list[Packed] = list((spoken or packed).values())
        shares = np.array([settings.mix[name] for name in (spoken or packed)])
        self._shares = shares / shares.sum()
        self._most = settings.prompt_tokens

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Ids and marks of one prompt."""
        for _ in range(1000):
            source = self._sources[rng.choice(len(self._sources), p=self._shares)]
            which = int(rng.integers(len(source.starts)))
            start = int(source.starts[which])
            end = int(source.starts[which + 1]) if which + 1 < len(source.starts) else len(source.ids)
            ids, mask = source.ids[start:end], source.mask[start:end]
            if self.are_text:
                size = min(_TEXT_PROMPT_TOKENS, self._most, len(ids) // 2)
                if size:
                    return ids[:size], np.zeros(size, np.uint8)
                continue
            begins = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0) == 1)
            begins = begins[(begins > 0) & (begins <= self._most)]
            if len(begins):
                size = int(begins[rng.integers(len(begins))])
                return ids[:size], mask[:size] * np.uint8(EARLIER_TURN)
        raise ValueError(f"no document of the mix gives a prompt of at most {self._most} tokens")


def answer_shard(
    teacher: Llama, prompts: Prompts, settings: ReplySettings, number: int, stop: frozenset[int]
) -> list[Sample]:
    rng = np.random.default_rng([settings.seed, number])
    drawn = [prompts.draw(rng) for _ in range(settings.shard_prompts)]
    wishes = [
        Prompt(
            ids=ids.tolist(),
            stop=stop,
            limit=settings.reply_tokens,
            temperature=settings.temperature if index % 2 else 0.0,
            seed=int(rng.integers(2**31)),
        )
        for index, (ids, _) in enumerate(drawn)
    ]
    replies = generate(teacher, wishes, rows=settings.batch_rows)
    return [
        Sample(
            ids=np.concatenate([ids, np.asarray(reply.ids)]).astype(np.uint16),
            marks=np.concatenate([marks, np.full(len(reply.ids), REPLY)]).astype(np.uint8),
        )
        for (ids, marks), reply in zip(drawn, replies, strict=True)
    ]


def _save_shard(path: Path, samples: list[Sample]) -> None:
    ends = np.cumsum([len(sample.ids) for sample in samples]).astype(np.uint32)
    ids = np.concatenate([sample.ids for sample in samples])
    marks = np.concatenate([sample.marks for sample in samples])

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez(stream, ids=ids, marks=marks, ends=ends)

    save_atomically(path, write)


def read_samples(folder: Path) -> list[Sample]:
    """All samples of a finished folder, in order."""
    count = json.loads((folder / _DONE).read_text(encoding="utf-8"))["shards"]
    samples: list[Sample] = []
    for number in range(count):
        with np.load(folder / f"{number:05}.npz", allow_pickle=False) as shard:
            begin = 0
            for end in shard["ends"].tolist():
                samples.append(Sample(ids=shard["ids"][begin:end], marks=shard["marks"][begin:end]))
                begin = end
    return samples


def make_samples(
    teacher: Llama,
    prepared: Path,
    folder: Path,
    settings: ReplySettings,
    *,
    stop: frozenset[int],
    limit_s: float,
) -> Iterator[dict[str, float]]:
    """Shards until there are enough or the time is over (at least one); yields a line of progress for each."""
    if (folder / _DONE).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    prompts = Prompts(prepared, settings)
    wanted = max(1, settings.prompts // settings.shard_prompts)
    began, number = time.monotonic(), 0
    while number < wanted:
        path = folder / f"{number:05}.npz"
        number += 1
        if path.is_file():
            continue
        if number > 1 and time.monotonic() - began > limit_s:
            number -= 1
            break
        started = time.monotonic()
        samples = answer_shard(teacher, prompts, settings, number - 1, stop)
        _save_shard(path, samples)
        seconds = time.monotonic() - started
        replied = sum(int((sample.marks == REPLY).sum()) for sample in samples)
        yield {
            "shard": number,
            "reply_tokens": replied,
            "tokens_per_second": round(sum(len(sample.ids) for sample in samples) / seconds),
            "reply_tokens_per_second": round(replied / seconds),
        }
    write_atomically(folder / _DONE, json.dumps({"shards": number}).encode("utf-8"))
