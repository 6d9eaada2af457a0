"""Checked access to a config.json: right types, sane ranges, and features refused by name.

A config that does not say what it must, or says it in the wrong type, is `CorruptArtifact`; one that asks for
something that is not known here is `UnsupportedArchitecture`. Ranges keep hostile numbers away from allocations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_COUNT = 1 << 24  # vocabulary entries
MAX_POSITIONS = 1 << 28
_MISSING = object()

# Features that change the maths of any architecture -> the values that leave it alone.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,), "compression_config": (None,), "num_experts": (None, 0),
    "num_local_experts": (None, 0, 1), "n_routed_experts": (None, 0), "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "use_mrope": (None, False), "no_rope_layers": (None, []), "num_nextn_predict_layers": (None, 0),
    "logit_scale": (None, 1, 1.0), "residual_multiplier": (None, 1, 1.0), "embedding_multiplier": (None, 1, 1.0),
    "attention_multiplier": (None,), "logits_scaling": (None, 1, 1.0), "attn_temperature_tuning": (None, False),
    "use_bidirectional_attention": (None, False), "use_sinks": (None, False), "qk_layernorm": (None, False),
    "kv_lora_rank": (None, 0), "cross_layer_kv": (None, False), "use_res_clamp": (None, False),
}  # fmt: skip


class Config:
    """One config.json. `path` is for messages."""

    def __init__(self, values: Mapping[str, Any], path: Path, prefix: str = "") -> None:
        self.values, self.path, self._prefix = values, path, prefix

    def get(self, name: str, default: Any = None) -> Any:
        """The raw value; null counts as missing."""
        value = self.values.get(name)
        return default if value is None else value

    def fail(self, name: str, value: object, limit: object) -> CorruptArtifact:
        """The error for a value that contradicts the format."""
        return CorruptArtifact(self.path, f"'{self._prefix}{name}'", value, limit)

    def unsupported(self, name: str, value: object, known: str) -> UnsupportedArchitecture:
        """The error for a sound value that is not known here."""
        shown = repr(value)
        shown = shown[:117] + "..." if len(shown) > 120 else shown
        return UnsupportedArchitecture(f"{self.path}: '{self._prefix}{name}' is {shown}, which is not known; {known}.")

    def part(self, name: str) -> Config | None:
        """A nested object, or None."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(name, value, "an object or null")
        return Config(value, self.path, f"{self._prefix}{name}.")

    def count(self, name: str, default: Any = _MISSING, *, most: int = MAX_WIDTH, least: int = 1) -> int:
        """A whole number from `least` to `most`."""
        value = self.get(name, default)
        if value is _MISSING:
            raise self.fail(name, "missing", f"a whole number from {least} to {most}")
        if type(value) is not int or not least <= value <= most:
            raise self.fail(name, value, f"a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: Any = _MISSING, *, most: float = 1e12) -> float:
        """A positive number."""
        value = self.get(name, default)
        if value is _MISSING:
            raise self.fail(name, "missing", "a positive number")
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 < value <= most:
            raise self.fail(name, value, f"a positive number, at most {most:g}")
        return float(value)

    def optional_number(self, name: str, default: float | None) -> float | None:
        """A positive number; null, where it is written out, switches the feature off."""
        if name in self.values and self.values[name] is None:
            return None
        return None if default is None and self.get(name) is None else self.number(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if type(value) is not bool:
            raise self.fail(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str | None:
        """A string, or the default."""
        value = self.get(name, default)
        if value is not None and not isinstance(value, str):
            raise self.fail(name, value, "a string")
        return value

    def refuse_features(self, **neutral: tuple[Any, ...]) -> None:
        """Refuse features that would change the maths. neutral: further ones -> values that leave it alone."""
        for name, allowed in (_NEUTRAL | neutral).items():
            value = self.values.get(name)
            if not any(type(value) is type(ok) and value == ok for ok in (*allowed, None)):
                harmless = " or ".join("null" if v is None else repr(v) for v in allowed)
                raise self.unsupported(name, value, f"only {harmless} is supported")

    def activation(self, name: str = "hidden_act", default: str = "silu") -> Any:
        """Our name of the feed-forward's activation."""
        known = {
            "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
            "gelu_pytorch_tanh": "gelu_tanh", "gelu_tanh": "gelu_tanh",
        }  # fmt: skip
        value = self.text(name, default)
        if value not in known:
            raise self.unsupported(name, value, f"known are {', '.join(known)}")
        return known[value]

    def token_ids(self, name: str, vocab: int) -> tuple[int, ...]:
        """One id or a list of them, each inside the vocabulary."""
        value = self.get(name, [])
        ids = value if isinstance(value, list) else [value]
        if len(ids) > 256 or not all(type(i) is int and 0 <= i < vocab for i in ids):
            raise self.fail(name, value, f"ids from 0 to {vocab - 1}")
        return tuple(ids)

    def token_id(self, name: str, vocab: int) -> int | None:
        """One id, or None. Ids outside the vocabulary (older files pad with -1) count as none."""
        value = self.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if value is not None and type(value) is not int:
            raise self.fail(name, value, "an id")
        return value if value is not None and 0 <= value < vocab else None
