"""What an eviction policy is: a pure function that says how much each row is worth keeping.

A policy is a module of `policies/` whose `POLICY` is an instance, found by its file's name. It scores rows; which rows
then stay, with the protected ones always among them, is the same for all and stands in `selection.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Literal, Protocol

import numpy as np

from wattwise.kv.sight import Sight
from wattwise_devices.errors import PlanError

Need = Literal["keys", "attention"]
Positions = Literal["keep", "close"]


class Policy(Protocol):
    """One way to tell rows that matter from rows that do not.

    name: as in `--kv NAME:BUDGET`. source: the paper. needs: what the engine must be able to show. queries: how many of
    the last tokens' attention it looks at, 0 where it sums up all of them. recent_share: part of the budget that goes
    to the newest rows, whatever they score. positions: whether rows keep their positions after an eviction, or holes
    are closed by turning the keys (as its paper has it).
    """

    name: str
    source: str
    needs: frozenset[Need]
    queries: int
    recent_share: float
    positions: Positions

    def scores(self, sight: Sight) -> np.ndarray:
        """Worth of every row, float64 [layers, kv_heads, rows]; larger is more worth keeping.

        Comparable within a head; averaged over layers and heads where rows can only be dropped whole.
        """
        ...


def policy_names() -> list[str]:
    """Every policy there is, in the order of the alphabet."""
    from wattwise.kv import policies

    return sorted(found.name for found in pkgutil.iter_modules(policies.__path__) if not found.name.startswith("_"))


def get_policy(name: str) -> Policy:
    """The policy of that name. Raises PlanError, naming those that exist."""
    if name not in policy_names():
        raise PlanError(f"there is no KV policy {name!r}; there are: {', '.join(policy_names())}")
    return importlib.import_module(f"wattwise.kv.policies.{name}").POLICY
