"""Device profiles: what a kind of machine cannot tell about itself, one TOML file each in profiles/.

A profile is found by patterns on the board's name, the processor's name and the platform; the one with the most
matching patterns' characters wins. Numbers named in `estimated` are estimates, the others come from a public source
that stands beside them in the file. Not here: anything that can be read or measured on the machine itself.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from wattwise_devices.errors import CorruptArtifact

PROFILES = Path(__file__).parent / "profiles"
_KINDS = ("performance", "efficiency", "unknown")
_NUMBERS = {
    "power.idle_w": (0.0, 500.0),
    "memory.read_bytes_per_s": (1e8, 1e13),
    "thermal.throttle_c": (30.0, 130.0),
    "thermal.stop_c": (30.0, 130.0),
    "supply.max_w": (0.5, 2000.0),
    "supply.battery_wh": (0.5, 200.0),
}  # every optional number with the range in which it makes sense
_PLATFORMS = ("linux", "android", "darwin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """name: the file's. idle_w: of the whole device with nothing running. busy_core_w: on top of that for each fully
    busy core, by kind. throttle_c: where it starts to slow down; stop_c: where it is slowed hard or switches off.
    supply_w: the most that its supply gives. estimated: dotted keys whose numbers are estimates.
    settings: values that such a machine is better run with, by name; the SDK knows which there are."""

    name: str
    title: str
    boards: tuple[str, ...]
    cpus: tuple[str, ...]
    platforms: tuple[str, ...]
    idle_w: float | None
    busy_core_w: dict[str, float]
    read_bytes_per_s: float | None
    throttle_c: float | None
    stop_c: float | None
    supply_w: float | None
    battery_wh: float | None
    estimated: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...] = ()

    def watts_of(self, kind: str) -> float | None:
        """Of one busy core of a kind; for a kind that the profile does not tell apart, of its only one."""
        if kind in self.busy_core_w:
            return self.busy_core_w[kind]
        return next(iter(self.busy_core_w.values())) if len(self.busy_core_w) == 1 else None

    def score(self, board: str | None, cpu: str | None, platform: str) -> int:
        """0: not this machine. Else the more the longer the texts that matched: a closer description wins."""
        if self.platforms and platform not in self.platforms:
            return 0
        matched = 1 if self.platforms and not self.boards and not self.cpus else 0
        for patterns, text in ((self.boards, board), (self.cpus, cpu)):
            found = [re.search(pattern, text, re.IGNORECASE) for pattern in patterns] if text else []
            lengths = [len(match[0]) for match in found if match]
            if lengths:
                matched += 1 + max(lengths)
        return matched


def find_profile(board: str | None, cpu: str | None, platform: str, folder: Path = PROFILES) -> Profile | None:
    """The profile that describes this machine best, or None."""
    ranked = [(p.score(board, cpu, platform), p) for p in load_profiles(folder)]
    best = max(ranked, key=lambda pair: pair[0], default=None)
    return best[1] if best and best[0] > 0 else None


@cache
def load_profiles(folder: Path = PROFILES) -> tuple[Profile, ...]:
    """All profiles of a folder, by name. Raises CorruptArtifact for a file that is not one."""
    return tuple(load_profile(path) for path in sorted(folder.glob("*.toml")))


def load_profile(path: Path) -> Profile:
    """One file, checked. Raises CorruptArtifact naming file and key."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CorruptArtifact(path, "profile", str(error), "a TOML file in UTF-8") from error
    title, estimated, settings = data.pop("title", None), data.pop("estimated", []), data.pop("settings", {})
    if not isinstance(settings, dict) or not all(isinstance(v, (str, int, float)) for v in settings.values()):
        raise _wrong(path, "settings", settings, "a table of numbers and texts")
    if not isinstance(title, str) or not title:
        raise _wrong(path, "title", title, "a text")
    sections = {name: _section(path, data, name) for name in ("match", "power", "memory", "thermal", "supply")}
    _refuse_unknown(path, "", data)
    match = {
        name: _texts(path, f"match.{name}", sections["match"].pop(name, [])) for name in ("board", "cpu", "platform")
    }
    _check_match(path, match)
    numbers = {key: _number(path, key, sections) for key in _NUMBERS}
    watts = _busy_core_w(path, sections["power"].pop("busy_core_w", {}))
    for name, rest in sections.items():
        _refuse_unknown(path, f"{name}.", rest)
    given = {key for key, value in numbers.items() if value is not None} | {f"power.busy_core_w.{k}" for k in watts}
    for key in _texts(path, "estimated", estimated):
        if key not in given:
            raise _wrong(path, "estimated", key, f"one of the given numbers: {', '.join(sorted(given))}")
    return Profile(
        name=path.stem,
        title=title,
        boards=match["board"],
        cpus=match["cpu"],
        platforms=match["platform"],
        idle_w=numbers["power.idle_w"],
        busy_core_w=watts,
        read_bytes_per_s=numbers["memory.read_bytes_per_s"],
        throttle_c=numbers["thermal.throttle_c"],
        stop_c=numbers["thermal.stop_c"],
        supply_w=numbers["supply.max_w"],
        battery_wh=numbers["supply.battery_wh"],
        estimated=tuple(estimated),
        settings=tuple(settings.items()),
    )


def _section(path: Path, data: dict[str, Any], name: str) -> dict[str, Any]:
    section = data.pop(name, {})
    if not isinstance(section, dict):
        raise _wrong(path, name, section, "a table")
    return dict(section)


def _texts(path: Path, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _wrong(path, key, value, "a list of texts")
    return tuple(value)


def _check_match(path: Path, match: dict[str, tuple[str, ...]]) -> None:
    if not any(match.values()):
        raise _wrong(path, "match", "empty", "at least one pattern for board, cpu or platform")
    for key in ("board", "cpu"):
        for pattern in match[key]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise _wrong(path, f"match.{key}", pattern, f"a regular expression ({error})") from error
    for platform in match["platform"]:
        if platform not in _PLATFORMS:
            raise _wrong(path, "match.platform", platform, f"one of {', '.join(_PLATFORMS)}")


def _number(path: Path, key: str, sections: dict[str, dict[str, Any]]) -> float | None:
    section, _, name = key.partition(".")
    return _checked(path, key, sections[section].pop(name)) if name in sections[section] else None


def _busy_core_w(path: Path, value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise _wrong(path, "power.busy_core_w", value, "a table of watts by kind of core")
    for kind in value:
        if kind not in _KINDS:
            raise _wrong(path, f"power.busy_core_w.{kind}", kind, f"one of {', '.join(_KINDS)}")
    return {kind: _checked(path, f"power.busy_core_w.{kind}", watts) for kind, watts in value.items()}


def _checked(path: Path, key: str, value: object) -> float:
    low, high = _NUMBERS.get(key, (0.01, 100.0))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise _wrong(path, key, value, f"a number from {low:g} to {high:g}")
    return float(value)


def _refuse_unknown(path: Path, prefix: str, rest: Iterable[str]) -> None:
    for key in rest:
        raise CorruptArtifact(path, f"{prefix}{key}", "unknown", "only the keys of device profiles; is it misspelt?")


def _wrong(path: Path, key: str, value: object, wanted: str) -> CorruptArtifact:
    return CorruptArtifact(path, key, value, wanted)
