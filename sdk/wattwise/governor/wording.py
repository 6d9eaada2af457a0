"""The sentences of the governor's events."""

from __future__ import annotations

from wattwise.events import ControlMoved, Released, Retuned, Throttled
from wattwise.governor.limiters import Bound


def moved_event(
    at_s: float, control: str, before: float | str, after: float | str, bound: Bound | None, direction: str
) -> ControlMoved:
    """direction: "down", "up" or "tuned"."""
    kind = {"down": Throttled, "up": Released, "tuned": Retuned}[direction]
    change = f"{control} {_show(control, before)} → {_show(control, after)}"
    if bound is None or direction == "tuned":
        why = "more tokens for the same watts"
    elif direction == "down":
        source = f" ({bound.source})" if bound.source else ""
        why = f"{bound.limit} {bound.measured:.1f} {bound.unit}{source}, limit {bound.allowed:.1f} {bound.unit}"
    else:
        why = f"room again, {bound.limit} {bound.measured:.1f} of {bound.allowed:.1f} {bound.unit}"
    if bound is not None and bound.limit == "under-voltage":
        why = "under-voltage" if direction == "down" else "the supply voltage has held"
    return kind(
        f"{change}: {why}",
        at_s=round(at_s, 3),
        control=control,
        before=before,
        after=after,
        limit="speed" if bound is None else bound.limit,
        measured=None if bound is None else round(bound.measured, 3),
        allowed=None if bound is None else bound.allowed,
        unit="" if bound is None else bound.unit,
        source="" if bound is None else bound.source,
    )


def _show(control: str, value: float | str) -> str:
    return f"{100 * value:.0f} %" if control == "pace" and isinstance(value, float) else str(value)
