"""Which tokens a step trains on: a pure function of seed, stage and step, so that resuming changes nothing.

A window begins at the start of a document, because that is where a conversation begins at run time, except in
running text, where it may begin anywhere: passages of a book are long and their start is nothing special.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.configuration import Stage
from models.pack import Packed, open_packed

IGNORED = -100  # a target that has no part in the loss


class Batches:
    def __init__(self, prepared: Path, stage: Stage, *, seed: int) -> None:
        self._stage, self._length, self._seed = stage, stage.window, seed
        self._names = sorted(stage.mix)
        self._packed = [open_packed(prepared, name, "train") for name in self._names]
        for name, packed in zip(self._names, self._packed, strict=True):
            if len(packed.ids) == 0:
                raise ValueError(f"the source {name!r} has no training tokens")
        shares = np.array([stage.mix[name] for name in self._names])
        self._shares = shares / shares.sum()

    def passes(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """(inputs, targets) of every pass of a step, each [windows, length]."""
        rng = np.random.default_rng([self._seed, zlib.crc32(self._stage.name.encode()), step])
        windows = self._stage.tokens_per_step // self._length
        chosen = rng.choice(len(self._names), size=windows, p=self._shares)
        rows = [self._window(self._packed[source], rng) for source in chosen]
        per_pass = self._stage.tokens_per_pass // self._length
        batches = []
        for first in range(0, windows, per_pass):
            part = rows[first : first + per_pass]
            batches.append((torch.stack([row[0] for row in part]), torch.stack([row[1] for row in part])))
        return batches

    def _window(self, packed: Packed, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        is_chat = bool(packed.mask[: 4 * self._length].any())
        if is_chat:
            start = int(packed.starts[rng.integers(len(packed.starts))])
        else:
            start = int(rng.integers(len(packed.ids)))
        index = (start + np.arange(self._length + 1)) % len(packed.ids)  # the end joins the beginning
        ids = torch.from_numpy(packed.ids[index].astype(np.int64))
        targets = ids[1:].clone()
        if self._stage.loss_on == "assistant":
            targets[torch.from_numpy(packed.mask[index][1:] == 0)] = IGNORED
        return ids[:-1], targets
