"""wattwise: run language models on the device you have, inside the memory and the watts you allow.

    import wattwise

    model = wattwise.load("builtin", budget=wattwise.Budget(memory="1GiB"))
    print(model.plan)
    print(model.chat("Why is the sky blue?"))

Importing this package loads no engine; names below are fetched from their modules on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Budget": "budget",
    "Conversation": "conversation",
    "Model": "model",
    "Piece": "reply",
    "Plan": "planning",
    "Reply": "reply",
    "SamplerParams": "sampling",
    "Stats": "stats",
    "Stream": "streaming",
    "load": "model",
    "plan": "planning",
}
__all__ = [
    "Budget",
    "Conversation",
    "Model",
    "Piece",
    "Plan",
    "Reply",
    "SamplerParams",
    "Stats",
    "Stream",
    "__version__",
    "errors",
    "load",
    "plan",
]

if TYPE_CHECKING:
    from wattwise import errors
    from wattwise.budget import Budget
    from wattwise.conversation import Conversation
    from wattwise.model import Model, load
    from wattwise.planning import Plan, plan
    from wattwise.reply import Piece, Reply
    from wattwise.sampling import SamplerParams
    from wattwise.stats import Stats
    from wattwise.streaming import Stream


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("wattwise.errors")
    if name not in _WHERE:
        raise AttributeError(f"module 'wattwise' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"wattwise.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
