"""Settings: where every value that steers a run comes from, in one order of precedence.

    argument  >  environment (WATTWISE_...)  >  config.toml of the user  >  profile of the device  >  default

`resolve` answers with each value and its source, which `wattwise plan --explain` prints. Keys of config.toml are the
names below, written as TOML values or as texts with a unit (memory = "3.5GiB"); one that is not known is an error
that names file and key. Sampling and prompts are no settings: they belong to a request.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattwise.budget import PARSERS, Budget
from wattwise.kv.eviction import OVERFLOW, EvictionRequest, parse_eviction
from wattwise.kv.guard import GuardSettings, parse_guard
from wattwise.paths import config_dir
from wattwise.units import parse_bytes
from wattwise_devices.errors import PlanError

FILE_NAME = "config.toml"
PREFIX = "WATTWISE_"
MEASURE = ("auto", "never")


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it comes from, in words."""

    name: str
    value: Any
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"name": self.name, "value": self.value, "source": self.source}


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, resolved."""

    entries: tuple[Setting, ...]

    def __getitem__(self, name: str) -> Any:
        return self.setting(name).value

    def setting(self, name: str) -> Setting:
        """The value with its source. KeyError for a name that is none."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(name)

    def budget(self) -> Budget:
        """The bounds among the settings."""
        return Budget(**{name: self[name] for name in PARSERS})

    def to_json(self) -> list[dict[str, Any]]:
        """Every setting, in the order of the table."""
        return [entry.to_json() for entry in self.entries]

    def table(self) -> str:
        """For people: name, value, source."""
        rows = [(e.name, "-" if e.value is None else str(e.value), e.source) for e in self.entries]
        widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
        return "\n".join(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}" for name, value, source in rows)


def _count(value: Any) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdigit() or int(text) < 1:
        raise ValueError(f"{value!r} is not a count of at least 1")
    return int(text)


def _word(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip():
        raise ValueError(f"{value!r} is not a text")
    return str(value)


def _measure(value: Any) -> str:
    if value not in MEASURE:
        raise ValueError(f"{value!r} is none of {', '.join(MEASURE)}")
    return value


def _kv_policy(value: Any) -> EvictionRequest:
    return value if isinstance(value, EvictionRequest) else parse_eviction(str(value))


def _kv_guard(value: Any) -> GuardSettings:
    return value if isinstance(value, GuardSettings) else parse_guard(str(value))


def _overflow(value: Any) -> str:
    if value not in OVERFLOW:
        raise ValueError(f"{value!r} is none of {', '.join(OVERFLOW)}")
    return value


def _bytes_or_none(value: Any) -> int:
    """A size, or 0 for none at all."""
    return 0 if str(value).strip() == "0" else parse_bytes(value)


@dataclass(frozen=True, slots=True)
class _Known:
    parse: Callable[[Any], Any]
    default: Any = None
    why: str = "default"


# The flag of kv_type and kv_policy is --kv. measure: whether this machine's speed may be measured (a few seconds, once)
# or not at all. sessions_bytes: what the KV rows of saved conversations may take on disk; their texts are kept anyway.
KNOWN: dict[str, _Known] = {
    "model": _Known(_word, "builtin", "default: the model inside the package"),
    **{name: _Known(parse, None, "default: no bound") for name, parse in PARSERS.items()},
    "engine": _Known(_word, "auto"),
    "context": _Known(_count, None, "default: the planner's choice"),
    "kv_type": _Known(_word, None, "default: the planner's choice"),
    "kv_policy": _Known(_kv_policy, None, "default: nothing is evicted"),
    "kv_guard": _Known(_kv_guard, None, "default: evictions are not looked at"),
    "kv_spill": _Known(parse_bytes, None, "default: evicted rows are forgotten"),
    "overflow": _Known(_overflow, "error"),
    "chunk": _Known(_count, None, "default: the planner's choice"),
    "threads": _Known(_count, None, "default: the planner's choice"),
    "threads_batch": _Known(_count, None, "default: the planner's choice"),
    "measure": _Known(_measure, "auto"),
    "sessions_bytes": _Known(_bytes_or_none, 1 << 30),
}


def resolve(
    arguments: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
    profile: Mapping[str, Any] | None = None,
    profile_name: str = "",
) -> Settings:
    """Every setting with its value and source. None among the arguments means not given.

    environment: os.environ by default. file: the user's config.toml by default; it need not exist. profile: values of
    the device's profile. Raises PlanError naming source and key for an unknown key or a value that cannot be.
    """
    env = os.environ if environment is None else environment
    file = config_dir() / FILE_NAME if file is None else file
    given = {name: value for name, value in (arguments or {}).items() if value is not None}
    _refuse_unknown(given, "the arguments")
    _refuse_unknown(profile or {}, f"device profile {profile_name}".rstrip())
    layers = [
        (given, lambda name: "argument"),
        (_from_environment(env), lambda name: f"environment {PREFIX}{name.upper()}"),
        (read_config(file), lambda name: str(file)),
        (dict(profile or {}), lambda name: f"device profile {profile_name}".rstrip()),
    ]
    entries = []
    for name, known in KNOWN.items():
        found = next(((layer[name], source(name)) for layer, source in layers if name in layer), None)
        if found is None:
            entries.append(Setting(name, known.default, known.why))
            continue
        try:
            entries.append(Setting(name, known.parse(found[0]), found[1]))
        except ValueError as error:
            raise PlanError(f"{name} ({found[1]}): {error}") from error
    return Settings(tuple(entries))


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    """Empty variables count as not set, as shells use them."""
    named = {name: env.get(PREFIX + name.upper(), "") for name in KNOWN}
    return {name: text for name, text in named.items() if text}


def read_config(file: Path) -> dict[str, Any]:
    """The keys of a config.toml; empty if there is no file."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{file} cannot be read: {error}") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{file} is not TOML: {error}") from error
    _refuse_unknown(data, str(file))
    return data


def _refuse_unknown(keys: Mapping[str, Any], where: str) -> None:
    for key in keys:
        if key not in KNOWN:
            raise PlanError(f"{where}: there is no setting {key!r}; there are: {', '.join(KNOWN)}")
