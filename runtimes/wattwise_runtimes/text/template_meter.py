"""What one rendering of a template may use: time, size of single values, and the sum of what it builds.

Sizes are characters of text and items of lists and dicts, nested parts counted as often as they occur (that is how
they would be written out). Not here: where the meter is asked, see `text.sandbox`.
"""

from __future__ import annotations

import time
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any

import jinja2
from jinja2.utils import Namespace

MAX_PRODUCED = 128 << 20  # characters, and bytes of lists, over one rendering
_ITEM_BYTES = 8
_SIZED = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)
CONTAINERS = (*_SIZED, Namespace)


class LimitError(jinja2.TemplateError):
    """A template went past one of the limits."""


class Meter:
    """What one rendering may still use. Shared by every guard of one environment."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.limit = 0
        self.produced = 0
        self.known: dict[int, int] = {}

    def start(self, seconds: float, limit: int, known: dict[int, int]) -> None:
        """Begin a rendering: its time, the largest weight of one value, weights of the input's containers."""
        self.deadline = time.monotonic() + seconds
        self.limit, self.produced, self.known = limit, 0, known

    def tick(self) -> str:
        """Refuse to go on after the deadline."""
        if time.monotonic() > self.deadline:
            raise LimitError("it took too long")
        return ""

    def weigh(self, value: Any) -> Any:
        """A value that was built: itself, if it is not too large. Its own size adds to what was built so far."""
        self.check(value)
        if isinstance(value, str):
            self.add(len(value))
        elif isinstance(value, _SIZED) and id(value) not in self.known:
            self.add(_ITEM_BYTES * len(value))
        return value

    def add(self, size: int) -> None:
        """Count what was built."""
        self.produced += size
        if self.produced > MAX_PRODUCED:
            raise LimitError(f"more than {MAX_PRODUCED} characters and items were built")

    def check(self, value: Any) -> Any:
        """A value that is used: itself, if it is not too large with all it holds."""
        if isinstance(value, str):
            self.check_size(len(value))
        elif isinstance(value, CONTAINERS) and weight_of(value, self) > self.limit:
            raise LimitError(f"a value has more than {self.limit} characters and items")
        return value

    def check_size(self, size: int) -> None:
        """Refuse a result of this estimated size before it is made."""
        if size > self.limit:
            raise LimitError(f"a value of about {size} characters; at most {self.limit} are allowed")

    def iterate(self, values: Iterator[Any]) -> Iterator[Any]:
        """The values of a lazy filter, with a look at the clock between them."""
        for value in values:
            self.tick()
            yield value


def weight_of(value: Any, meter: Meter) -> int:
    """Characters and items of a value, shared parts counted as often as they occur; stops beyond the limit."""
    known, total, stack, turns = meter.known, 0, [value], 0
    while stack and total <= meter.limit:
        turns += 1
        if turns % 4096 == 0:
            meter.tick()
        item = stack.pop()
        if isinstance(item, str):
            total += len(item) + 1
            continue
        total += known.get(id(item), 1)
        if id(item) in known or not isinstance(item, CONTAINERS):
            continue
        if isinstance(item, Namespace):
            stack.extend(object.__getattribute__(item, "_Namespace__attrs").values())
        elif isinstance(item, dict):
            total += sum(len(key) for key in item if isinstance(key, str))
            stack.extend(item.values())
        else:
            total += len(item)
            stack.extend(item)
    return total
