"""SamplerParams: how tokens are drawn, checked when made.

Names, meanings and defaults are llama.cpp's, so that settings found elsewhere carry over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from wattwise_devices.errors import PlanError

MAX_BREAKER_BYTES = 40
_FINITE = ("temperature", "top_p", "min_p", "typical_p", "mirostat_tau", "mirostat_eta", "repeat_penalty")
_FINITE_TOO = ("frequency_penalty", "presence_penalty", "dry_multiplier", "dry_base")
_COUNTS = ("top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerParams:
    """Settings of one sampler.

    temperature: logits are divided by it; 0 takes the likeliest token. top_k: keep so many (0: all).
    top_p: keep the likeliest whose probabilities sum to this (1: all; Holtzman et al. 2019, arXiv:1904.09751).
    min_p: keep those at least so likely as this times the likeliest (0: all; arXiv:2407.01082).
    typical_p: keep those of near-average surprise (1: all; Meister et al. 2022, arXiv:2202.00666).
    mirostat: 0, or 2: hold the surprise per token near mirostat_tau bits, adapting by mirostat_eta (Basu et al.
    2020, arXiv:2007.14966); it replaces top_k, top_p, min_p and typical_p.
    repeat_penalty (Keskar et al. 2019, arXiv:1909.05858), frequency_penalty, presence_penalty: against tokens
    among the last repeat_last_n (-1: all, 0: none). dry_*: against going on with a text that occurred before,
    dry_multiplier * dry_base ** (length - dry_allowed_length); dry_sequence_breakers end such a text.
    logit_bias: added to single tokens' logits, -inf forbids one. seed: None for a fresh one every time.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in (*_FINITE, *_FINITE_TOO):
            _check_number(name, getattr(self, name))
        for name in _COUNTS:
            least = -1 if name.endswith("last_n") else 0
            _check_int(name, getattr(self, name), least)
        _check_range("temperature", self.temperature, self.temperature >= 0, "0 or more")
        for name in ("top_p", "min_p", "typical_p"):
            _check_range(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "0 to 1")
        _check_range("mirostat", self.mirostat, self.mirostat in (0, 2) and self.mirostat is not False, "0 or 2")
        _check_range("mirostat_tau", self.mirostat_tau, self.mirostat_tau >= 0, "0 or more")
        _check_range("mirostat_eta", self.mirostat_eta, self.mirostat_eta >= 0, "0 or more")
        _check_range("repeat_penalty", self.repeat_penalty, self.repeat_penalty > 0, "more than 0")
        _check_range("dry_multiplier", self.dry_multiplier, self.dry_multiplier >= 0, "0 or more")
        if self.dry_multiplier:
            _check_range("dry_base", self.dry_base, self.dry_base >= 1, "1 or more")
        if self.seed is not None:
            _check_int("seed", self.seed, 0)
            _check_range("seed", self.seed, self.seed < 1 << 64, "below 2**64")
        self._check_breakers()
        self._check_bias()
        if self.mirostat:
            self._check_mirostat()

    def _check_breakers(self) -> None:
        if isinstance(self.dry_sequence_breakers, str):
            raise PlanError(f"dry_sequence_breakers is the text {self.dry_sequence_breakers!r}; give a list of texts")
        object.__setattr__(self, "dry_sequence_breakers", tuple(self.dry_sequence_breakers))
        for text in self.dry_sequence_breakers:
            size = len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
            if not 1 <= size <= MAX_BREAKER_BYTES:
                raise PlanError(f"dry_sequence_breakers has {text!r}; each is a text of 1 to {MAX_BREAKER_BYTES} bytes")

    def _check_bias(self) -> None:
        bias = dict(self.logit_bias)
        for token, value in bias.items():
            _check_int("a token of logit_bias", token, 0)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value < math.inf:
                raise PlanError(f"logit_bias of token {token} is {value!r}; a number or -inf is needed")
        object.__setattr__(self, "logit_bias", MappingProxyType(bias))

    def _check_mirostat(self) -> None:
        if self.temperature == 0:
            raise PlanError("mirostat draws at random, temperature=0 does not; drop one of the two", _clash(0))
        for name in ("top_k", "top_p", "min_p", "typical_p"):
            value, default = getattr(self, name), _DEFAULTS[name]
            if value not in (default, 1.0 if name in ("top_p", "typical_p") else 0):
                raise PlanError(f"mirostat replaces {name}, which is set to {value}; drop one of the two", _clash(name))

    def __reduce__(self) -> tuple[Any, ...]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return _rebuild, ({**values, "logit_bias": dict(self.logit_bias)},)


def _rebuild(values: dict[str, Any]) -> SamplerParams:
    return SamplerParams(**values)


_DEFAULTS = {f.name: f.default for f in fields(SamplerParams)}


def _clash(other: object) -> tuple[str, str]:
    return ("mirostat", other if isinstance(other, str) else "temperature")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PlanError(f"{name} is {value!r}; a finite number is needed")


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PlanError(f"{name} is {value!r}; a whole number from {least} is needed")


def _check_range(name: str, value: Any, good: bool, allowed: str) -> None:
    if not good:
        raise PlanError(f"{name} is {value!r}; allowed: {allowed}")
