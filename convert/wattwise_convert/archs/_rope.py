"""RoPE settings of a config.json, in the forms of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters).

Known kinds: default, linear, llama3, longrope (also called su). Others (yarn, dynamic, multi-axis) are refused by name.
"""

from __future__ import annotations

import math
from typing import Any

from wattwise_convert.archs._config import MAX_POSITIONS, Config
from wattwise_runtimes.spec import RopeSpec

_KEYS = {  # kind -> settings that are understood; anything else would be ignored, so it is refused
    "default": {"factor"},
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "longrope": {"factor", "short_factor", "long_factor", "attention_factor", "original_max_position_embeddings"},
}
_ALWAYS = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}


def rope_spec(config: Config, head_dim: int, *, theta: float = 10000.0, partial: bool = False) -> RopeSpec:
    """The rotary embedding. theta: the default base. partial: the architecture may rotate a part of each head."""
    parameters = config.part("rope_parameters") or config.part("rope_scaling") or Config({}, config.path)
    return from_parameters(config, parameters, head_dim, theta=theta, partial=partial)


def from_parameters(
    config: Config, parameters: Config, head_dim: int, *, theta: float, partial: bool = False
) -> RopeSpec:
    """As `rope_spec`, from the settings that stand in `parameters`, and in `config` itself in older files."""
    share = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if type(share) not in (int, float) or not 0 < share <= 1:
        raise config.fail("partial_rotary_factor", share, "a number above 0, at most 1")
    if share != 1 and not partial:
        raise config.unsupported("partial_rotary_factor", share, "this architecture is known with whole heads only")
    dims = int(head_dim * share)
    if dims < 2 or dims % 2:
        raise config.fail("head size times partial_rotary_factor", dims, "an even number")
    source = parameters if parameters.get("rope_theta") is not None else config
    base: dict[str, Any] = {"dims": dims, "base": source.number("rope_theta", theta)}
    kind = parameters.text("rope_type") or parameters.text("type") or "default"
    kind = "longrope" if kind == "su" else kind
    if kind not in _KEYS:
        raise parameters.unsupported("rope_type", kind, f"known are {', '.join(_KEYS)}")
    extra = sorted(k for k in set(parameters.values) - _KEYS[kind] - _ALWAYS if parameters.get(k) is not None)
    if extra:
        raise parameters.unsupported(extra[0], parameters.get(extra[0]), f"not with RoPE of the kind {kind!r}")
    if kind == "linear":
        factor = parameters.number("factor")
        return RopeSpec(**base, scaling="linear", factor=factor) if factor != 1 else RopeSpec(**base)
    if kind == "llama3":
        return _llama3(parameters, base)
    if kind == "longrope":
        return _longrope(config, parameters, base)
    return RopeSpec(**base)


def _llama3(parameters: Config, base: dict[str, Any]) -> RopeSpec:
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    if high <= low:
        raise parameters.fail("high_freq_factor", high, f"more than low_freq_factor, {low}")
    return RopeSpec(
        **base, scaling="llama3", factor=parameters.number("factor"), low_freq_factor=low, high_freq_factor=high,
        original_context=parameters.count("original_max_position_embeddings", most=MAX_POSITIONS),
    )  # fmt: skip


def _longrope(config: Config, parameters: Config, base: dict[str, Any]) -> RopeSpec:
    name = "original_max_position_embeddings"
    source = parameters if parameters.get(name) is not None else config
    original = source.count(name, most=MAX_POSITIONS, least=2)
    stretch = config.count("max_position_embeddings", most=MAX_POSITIONS) / original
    # transformers: `factor` where given, else the ratio of the contexts
    factor = parameters.number("factor", stretch)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeSpec(
        **base, scaling="longrope", original_context=original,
        short_factor=_factors(parameters, "short_factor", base["dims"] // 2),
        long_factor=_factors(parameters, "long_factor", base["dims"] // 2),
        attention_factor=parameters.number("attention_factor", magnitude),
    )  # fmt: skip


def _factors(parameters: Config, name: str, count: int) -> tuple[float, ...]:
    values = parameters.get(name)
    if not isinstance(values, list) or len(values) != count:
        raise parameters.fail(name, values, f"a list of {count} numbers")
    if not all(type(v) in (int, float) and 0 < v < 1e9 for v in values):
        raise parameters.fail(name, values, "positive numbers")
    return tuple(float(v) for v in values)
