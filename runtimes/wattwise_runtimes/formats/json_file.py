"""JSON from untrusted files: bounded in bytes, nesting and number of values before the parser starts, and strict.

Refused as `CorruptArtifact`: text that is not UTF-8, numbers that no double or 64-bit integer holds (1e999, NaN),
names used twice in one object, halves of surrogate pairs (they cannot be encoded again), anything after the value.
What a file must contain is its reader's business.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.formats.checked import read_range, regular_file_size

DEFAULT_MAX_BYTES = 16 << 20
DEFAULT_MAX_DEPTH = 64
DEFAULT_MAX_VALUES = 1 << 23

_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_STRING = re.compile(rb'"[^"]*"')
_NOT_STRUCTURE = bytes(i for i in range(256) if i not in b"[]{},")
_LONG_NUMBER = re.compile(rb"[0-9]{18}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_INT64 = range(-(1 << 63), 1 << 64)  # int64 or uint64


def read_json(
    path: str | Path,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_depth: int = DEFAULT_MAX_DEPTH,
    *,
    max_values: int = DEFAULT_MAX_VALUES,
    duplicate_keys: bool = False,
) -> Any:
    """The value in a JSON file. duplicate_keys: accept a name used twice in one object (the last one counts)."""
    path = Path(path)
    size = regular_file_size(path)
    if size > max_bytes:
        raise CorruptArtifact(path, "file size in bytes", size, f"at most {max_bytes}")
    data = read_range(path, 0, size, "JSON text")
    return parse_json(data, path, max_depth=max_depth, max_values=max_values, duplicate_keys=duplicate_keys)


def read_json_object(path: str | Path, max_bytes: int = DEFAULT_MAX_BYTES) -> dict[str, Any]:
    """As `read_json`, for files whose value must be an object (config.json and its kind)."""
    value = read_json(path, max_bytes)
    if not isinstance(value, dict):
        raise CorruptArtifact(path, "JSON value", type(value).__name__, "an object")
    return value


def parse_json(
    data: bytes,
    path: Path,
    *,
    field: str = "JSON",
    max_depth: int = DEFAULT_MAX_DEPTH,
    max_values: int = DEFAULT_MAX_VALUES,
    duplicate_keys: bool = False,
) -> Any:
    """The value of JSON text that was read from `path`; `field` names the part of the file in messages."""
    _check_structure(data, path, field, max_depth, max_values)
    long_numbers = _LONG_NUMBER.search(data) is not None  # a hook per number is slow; most files need none
    try:
        value = json.loads(
            data.decode(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_int64 if long_numbers else None,
            object_pairs_hook=None if duplicate_keys else _unique,
        )
        if _SURROGATE.search(data):
            _check_encodable(value)
    except UnicodeDecodeError as error:
        bad = data[error.start : error.start + 8]
        raise CorruptArtifact(path, f"{field} at byte {error.start}", bad, "UTF-8") from None
    except json.JSONDecodeError as error:
        near = data.decode(errors="replace")[error.pos : error.pos + 24]
        raise CorruptArtifact(path, f"{field} at character {error.pos}", near, f"JSON ({error.msg})") from None
    except _BadValue as error:
        raise CorruptArtifact(path, f"{field} {error.what}", error.value, error.limit) from None
    except UnicodeEncodeError as error:
        raise CorruptArtifact(path, f"{field} string", error.object, "no half of a surrogate pair") from None
    except (RecursionError, ValueError) as error:  # the depth is checked; a second line of defence
        raise CorruptArtifact(path, field, type(error).__name__, f"JSON ({error})") from None
    return value


class _BadValue(Exception):
    def __init__(self, what: str, value: object, limit: str) -> None:
        self.what, self.value, self.limit = what, value, limit


def _check_structure(data: bytes, path: Path, field: str, max_depth: int, max_values: int) -> None:
    """Depth and number of values, from the brackets and commas outside strings."""
    bare = _ESCAPED.sub(b"", data) if b"\\" in data else data
    structure = np.frombuffer(_STRING.sub(b"", bare).translate(None, _NOT_STRUCTURE), dtype=np.uint8)
    if len(structure) > max_values:
        raise CorruptArtifact(path, f"{field}: brackets and commas", len(structure), f"at most {max_values}")
    if not len(structure):
        return
    steps = ((structure == ord("[")) | (structure == ord("{"))).astype(np.int8)
    steps -= (structure == ord("]")) | (structure == ord("}"))
    depth = int(np.cumsum(steps, dtype=np.int32).max())
    if depth > max_depth:
        raise CorruptArtifact(path, f"{field}: nesting", depth, f"at most {max_depth}")


def _refuse_constant(text: str) -> Any:
    raise _BadValue("number", text, "a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _BadValue("number", text, "a number that a double can hold")
    return value


def _int64(text: str) -> int:
    if len(text) > 20 or int(text) not in _INT64:
        raise _BadValue("integer", text, "a 64-bit integer")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _BadValue("name", key, "not used twice in one object")
            seen.add(key)
    return found


def _check_encodable(value: Any) -> None:
    """Raise UnicodeEncodeError for the first string that holds a lone surrogate."""
    check: Callable[[Any], None] = _check_encodable
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode()
            check(item)
    elif isinstance(value, list):
        for item in value:
            check(item)
