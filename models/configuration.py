"""One TOML file per size: the shape of the model, the stages of its training, the mix of each stage."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A Llama: RMSNorm, SwiGLU, rotary positions in half-split order, grouped keys, tied head."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    positions: int
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} KV heads evenly")
        for name in ("vocab", "width", "feed_forward"):
            if getattr(self, name) % 32:
                raise ValueError(f"{name} = {getattr(self, name)} is no multiple of 32, the block of Q8_0 and Q4_0")

    @property
    def parameters(self) -> int:
        attention = 2 * self.width * self.head_size * (self.heads + self.kv_heads)
        layer = attention + 3 * self.width * self.feed_forward + 2 * self.width
        return self.vocab * self.width + self.layers * layer + self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of training. Learning rates move linearly from `rate_from` to `rate_to` over its last part."""

    name: str
    tokens: int
    tokens_per_step: int
    tokens_per_pass: int  # one forward and backward; a step sums several
    window: int  # tokens of one row of a pass
    loss_on: str  # "all" or "assistant"
    mix: dict[str, float]
    warmup_steps: int = 0
    rate_from: float = 1.0
    rate_to: float = 1.0
    decay_share: float = 1.0
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.loss_on not in ("all", "assistant"):
            raise ValueError(f"stage {self.name}: loss_on is {self.loss_on!r}, not 'all' or 'assistant'")
        if self.tokens_per_step % self.tokens_per_pass or self.tokens_per_pass % self.window:
            raise ValueError(
                f"stage {self.name}: {self.tokens_per_step} tokens a step, {self.tokens_per_pass} a pass and "
                f"{self.window} a window must divide each other"
            )
        if not self.mix or min(self.mix.values()) <= 0:
            raise ValueError(f"stage {self.name}: the mix needs sources with shares above 0")

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.tokens_per_step)

    def rate_at(self, step: int) -> float:
        """The factor on both learning rates at a step counted from the stage's start."""
        if step < self.warmup_steps:
            return self.rate_from * (step + 1) / self.warmup_steps
        decay_start = self.steps * (1 - self.decay_share)
        done = (step - decay_start) / max(1.0, self.steps - decay_start)
        return self.rate_from + (self.rate_to - self.rate_from) * min(1.0, max(0.0, done))


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    name: str
    seed: int
    shape: ModelShape
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"no stage {name!r}; there are {', '.join(stage.name for stage in self.stages)}")

    @property
    def shares(self) -> dict[str, float]:
        """What part of all training tokens each source gives, over all stages."""
        total = sum(stage.tokens for stage in self.stages)
        shares: dict[str, float] = {}
        for stage in self.stages:
            for name, share in stage.mix.items():
                part = share / sum(stage.mix.values()) * stage.tokens / total
                shares[name] = shares.get(name, 0.0) + part
        return shares

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_config(path: Path) -> Config:
    with path.open("rb") as stream:
        raw = tomllib.load(stream)
    return Config(
        name=raw["name"],
        seed=raw["seed"],
        shape=ModelShape(**raw["model"]),
        stages=tuple(Stage(name=name, **stage) for name, stage in raw["stage"].items()),
    )


def shape_from_dict(raw: dict[str, Any]) -> ModelShape:
    return ModelShape(**raw)
