"""Speed before anything is loaded: the measured rates of this machine put together for one model.

A pass over n tokens takes fixed + layers x (part per layer) + weights x (part per weight, by type) + attention; a
decoded token is a pass over one token, whose weights are read at the rate that a model of this size gets from caches
and memory, plus what sampling and text cost. The parts come from `wattwise_runtimes.rates`, the model's weights from
`wattwise_runtimes.workload`. Where the machine is slower now than when it was measured, times are stretched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wattwise.host_cost import HostCost
from wattwise_runtimes.machine_speed import MachineSpeed
from wattwise_runtimes.rates import EngineRates, Pass
from wattwise_runtimes.workload import Workload

DEFAULT_PROMPT = 512
_REPLY = 128  # tokens of the reply that a plan's figures stand for
_LEAST_MARGIN, _INEXACT_MARGIN, _UNCHECKED_MARGIN = 0.10, 0.30, 0.10
_BEYOND_CACHES_BYTES = 24 << 20
_STEADY = 0.12  # differences between two looks at the machine that mean nothing
_LEAST_STRETCH, _MOST_STRETCH = 0.8, 5.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted figure with the interval that most runs should fall into."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Plain data."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def inverse(self, factor: float = 1.0) -> Estimate:
        """factor over this: a rate from a time."""
        return Estimate(factor / self.value, factor / self.high, factor / self.low)

    def times(self, factor: float) -> Estimate:
        """In another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Of one reply. j_per_token: decoding only, gross; None where no power is known."""

    prompt_tokens: int
    reply_tokens: int
    ttft_ms: Estimate
    prompt_per_second: Estimate
    tokens_per_second: Estimate
    j_per_token: Estimate | None = None
    power_w: float | None = None
    power_source: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data with stable names."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "reply_tokens": self.reply_tokens,
            "ttft_ms": self.ttft_ms.to_json(),
            "prompt_per_second": self.prompt_per_second.to_json(),
            "predicted_per_second": self.tokens_per_second.to_json(),
            "predicted_j_per_token": self.j_per_token.to_json() if self.j_per_token is not None else None,
            "power_w": self.power_w,
            "power_source": self.power_source,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What the machine draws while a model runs on so many threads, and who says so."""

    watts_by_threads: Mapping[int, float]
    source: str
    margin: float = 0.2

    def watts(self, threads: int) -> float | None:
        """None for a thread count that nothing is known about."""
        return self.watts_by_threads.get(threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """One model on one engine with its thread counts. rates: by weight type, for one token and for many.

    speed_now: of the machine, for `threads` and for `threads_batch`, or None where it was not looked at.
    """

    workload: Workload
    rates: Mapping[str, EngineRates]
    rates_batch: Mapping[str, EngineRates]
    host: HostCost
    threads: int
    threads_batch: int
    chunk: int = 512
    speed_now: MachineSpeed | None = None
    speed_now_batch: MachineSpeed | None = None
    power: Power | None = None

    def reply(self, prompt: int, reply: int = _REPLY, cached: int = 0) -> Prediction:
        """Of a reply of so many tokens to a prompt of so many, of which `cached` are held already."""
        first_s = self.prefill_s(max(1, prompt - cached), cached) + self._host_s()
        steps_s = self.decode_s(prompt + max(0, reply - 1) / 2) + self._host_s()
        ttft, step = self._estimate(first_s, self.rates_batch), self._estimate(steps_s, self.rates)
        watts = self.power.watts(self.threads) if self.power is not None else None
        joules = None
        if watts is not None and self.power is not None:
            low, high = 1 - self.power.margin, 1 + self.power.margin
            joules = Estimate(step.value * watts, step.low * watts * low, step.high * watts * high)
        return Prediction(
            prompt_tokens=prompt,
            reply_tokens=reply,
            ttft_ms=ttft.times(1e3),
            prompt_per_second=ttft.inverse(max(1, prompt - cached)),
            tokens_per_second=step.inverse(),
            j_per_token=joules,
            power_w=watts,
            power_source=self.power.source if self.power is not None and watts is not None else None,
        )

    def decode_s(self, depth: float) -> float:
        """Seconds of the engine for one token after `depth` others."""
        rates = self._main(self.rates)
        one = rates.passes[0]
        layers = self.workload.spec.layers
        weights_s = sum(self._read_s(self.rates[kind], count) for kind, count in self.workload.weights)
        attention_s = rates.attention_s(self.workload.spec, 1, depth)
        return (one.fixed_s + layers * one.layer_s + weights_s + attention_s) * self._stretch(rates, self.speed_now)

    def prefill_s(self, tokens: int, held: int = 0) -> float:
        """Seconds of the engine for reading so many tokens after `held` others, chunk by chunk."""
        seconds, done = 0.0, 0
        while done < tokens:
            n = min(self.chunk, tokens - done)
            seconds += self._pass_s(n, held + done)
            done += n
        return seconds

    def _pass_s(self, n: int, depth: float) -> float:
        if n == 1 and self.threads == self.threads_batch:
            return self.decode_s(depth)
        rates = self._main(self.rates_batch)
        cost = _between(rates.passes, n)
        spec = self.workload.spec
        weights_s = 0.0
        for kind, count in self.workload.weights:
            per_weight = _between(self.rates_batch[kind].passes, n).weight_s
            weights_s += max(count * per_weight, self._read_s(self.rates_batch[kind], count))
        # Rows of logits are wanted for the last token only, so the head is multiplied with once.
        head = spec.vocab * spec.hidden
        total = sum(count for _, count in self.workload.weights)
        if 0 < head < total:
            weights_s *= 1 - head / total * (1 - 1 / n)
        attention_s = rates.attention_s(spec, n, depth)
        seconds = cost.fixed_s + spec.layers * cost.layer_s + weights_s + attention_s
        return seconds * self._stretch(rates, self.speed_now_batch, is_batch=True)

    def _read_s(self, rates: EngineRates, count: int) -> float:
        """Seconds to pass one token through `count` weights of this type, at the rate of the whole model's size."""
        total = sum(n * self.rates[kind].bytes_per_weight for kind, n in self.workload.weights)
        return count * rates.bytes_per_weight / rate_at(rates.by_footprint, total)

    def _main(self, rates: Mapping[str, EngineRates]) -> EngineRates:
        return rates[self.workload.types[0]]

    def _host_s(self) -> float:
        return self.host.token_s(self.workload.spec.vocab)

    def _stretch(self, rates: EngineRates, now: MachineSpeed | None, *, is_batch: bool = False) -> float:
        """How much longer things take now than when the rates were measured.

        Rates are medians over single passes, which other processes rarely interrupt: they compare with the best moment
        of that time. What runs now is interrupted as the mean of a look at the machine is.
        """
        if now is None:
            return 1.0
        then = rates.speed
        cores = _steadied(then.cache_best_gb_s / now.cache_mean_gb_s)
        total = sum(n * self.rates[kind].bytes_per_weight for kind, n in self.workload.weights)
        before_gb_s, now_gb_s = then.memory_gb_s, now.memory_gb_s
        if is_batch or total < _BEYOND_CACHES_BYTES or before_gb_s is None or now_gb_s is None:
            return cores
        memory_share = min(1.0, rate_at(rates.by_footprint, total) / (before_gb_s * 1e9))
        return (1 - memory_share) * cores + memory_share * _steadied(before_gb_s / now_gb_s)

    def _estimate(self, seconds: float, rates: Mapping[str, EngineRates]) -> Estimate:
        margin = max(_LEAST_MARGIN, *(2 * rates[kind].spread for kind in self.workload.types))
        margin += 0.0 if self.workload.exact else _INEXACT_MARGIN
        margin += 0.0 if self.speed_now is not None else _UNCHECKED_MARGIN
        return Estimate(seconds, seconds / (1 + margin), seconds * (1 + margin))


def rate_at(by_footprint: Sequence[tuple[int, float]], nbytes: float) -> float:
    """Bytes per second for a model of that size: between the measured sizes by the logarithm, the nearest outside."""
    below = [entry for entry in by_footprint if entry[0] <= nbytes]
    above = [entry for entry in by_footprint if entry[0] > nbytes]
    if not below or not above:
        return (above[0] if above else below[-1])[1]
    (low_bytes, low_rate), (high_bytes, high_rate) = below[-1], above[0]
    share = math.log(nbytes / low_bytes) / math.log(high_bytes / low_bytes)
    return low_rate * (high_rate / low_rate) ** share


def _between(passes: Sequence[Pass], n: int) -> Pass:
    """Cost of a pass over n tokens, from the measured sizes on both sides."""
    below = [p for p in passes if p.tokens <= n]
    above = [p for p in passes if p.tokens > n]
    if not above:
        last = below[-1]
        grown = n / last.tokens
        return Pass(tokens=n, fixed_s=last.fixed_s, layer_s=last.layer_s * grown, weight_s=last.weight_s * grown)
    low, high = below[-1], above[0]
    share = (n - low.tokens) / (high.tokens - low.tokens)

    def mix(name: str) -> float:
        return getattr(low, name) + share * (getattr(high, name) - getattr(low, name))

    return Pass(tokens=n, fixed_s=mix("fixed_s"), layer_s=mix("layer_s"), weight_s=mix("weight_s"))


def _steadied(ratio: float) -> float:
    """A ratio of speeds, 1 where the difference means nothing, and within what can be believed."""
    return 1.0 if abs(math.log(ratio)) < _STEADY else min(_MOST_STRETCH, max(_LEAST_STRETCH, ratio))
