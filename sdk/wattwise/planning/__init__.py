"""Planning: what a load would do and cost, decided before anything is loaded."""

from wattwise.planning.choose import plan
from wattwise.planning.memory import DEFAULT_CONTEXT, Wants, with_headroom
from wattwise.planning.plan import Plan

__all__ = ["DEFAULT_CONTEXT", "Plan", "Wants", "plan", "with_headroom"]
