"""What was asked for (`keydiff:512`) and what that comes to for one model: an `Eviction`, decided by the plan.

    POLICY[:BUDGET][:close|keep][:token|head]

BUDGET: tokens (512), bytes (64MB) or a share of the context (50%); without one, whatever fits. close, keep: whether
holes are closed by turning keys; head, token: whether heads may keep different rows. Both are the policy's and the
engine's choice where nothing is said.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from wattwise.kv.policy import Positions, get_policy
from wattwise.units import parse_bytes
from wattwise_devices.errors import PlanError
from wattwise_runtimes.spec import ModelSpec

SINKS = 4  # first tokens that always stay (StreamingLLM): attention rests on them whatever they say
_BLOCK, _ATTENTION_BLOCK, _LEAST_BLOCK = 128, 32, 8
_RECENT_SHARE, _MOST_RECENT = 0.25, 32
_LEAST_TOKENS = 16
_WATCHING_BYTES = 4 << 20  # heaps of what watches attention: measured, 2 to 5 MiB

Level = Literal["token", "head"]

# What happens to a text that is longer than the context: an error, eviction by a policy that looks at the rows,
# eviction of the oldest, or (in a conversation) a summary in place of the oldest messages.
OVERFLOW = ("error", "evict", "shift", "summarise")
_OVERFLOW_POLICY = {"evict": "keydiff", "shift": "window"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionRequest:
    """As asked for. At most one of tokens, nbytes and share is given."""

    policy: str
    tokens: int | None = None
    nbytes: int | None = None
    share: float | None = None
    positions: Positions | None = None
    level: Level | None = None

    @property
    def has_budget(self) -> bool:
        """Whether one was given, rather than left to what fits."""
        return self.tokens is not None or self.nbytes is not None or self.share is not None

    def __str__(self) -> str:
        budget = self.tokens or (f"{self.nbytes}B" if self.nbytes else f"{100 * self.share:g}%" if self.share else None)
        return ":".join(str(part) for part in (self.policy, budget, self.positions, self.level) if part is not None)

    def resolve(self, *, context: int, row_bytes: int, level: Level) -> Eviction:
        """For a model of which `context` tokens would be held without eviction, at so many bytes each.

        level: the finest that the engine has. Raises PlanError for a budget too small to evict within.
        """
        policy = get_policy(self.policy)
        tokens = self.tokens
        if self.nbytes is not None:
            tokens = self.nbytes // row_bytes
        elif self.share is not None:
            tokens = int(self.share * context)
        usual = _ATTENTION_BLOCK if "attention" in policy.needs else _BLOCK
        if tokens is None:
            block = min(usual, max(_LEAST_BLOCK, context // 4))
            tokens = context - block
        else:
            block = min(usual, max(_LEAST_BLOCK, tokens // 2))
        if tokens < _LEAST_TOKENS:
            raise PlanError(f"a KV budget of {tokens} tokens is too small; the least is {_LEAST_TOKENS}")
        positions = self.positions or policy.positions
        chosen: Level = self.level or ("token" if positions == "close" else level)
        if chosen == "head" and level != "head":
            raise PlanError(
                "heads cannot keep different rows on this engine; say ':token', or use the onnx engine",
                clash=("eviction by head", "engine"),
            )
        if chosen == "head" and positions == "close":
            raise PlanError(
                "holes cannot be closed where heads keep different rows; say ':token' or ':keep'",
                clash=("eviction by head", "closed positions"),
            )
        recent = max(1, min(_MOST_RECENT, int(_RECENT_SHARE * tokens)))
        return Eviction(
            policy=self.policy, budget_tokens=tokens, block=block, positions=positions, level=chosen, recent=recent
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """Decided. budget_tokens: rows that stay after an eviction; block: how many come on top of them before the next.

    recent: newest rows that always stay. positions, level: see the module.
    """

    policy: str
    budget_tokens: int
    block: int
    positions: Positions
    level: Level
    recent: int
    sinks: int = SINKS

    @property
    def rows(self) -> int:
        """What the KV cache needs room for."""
        return self.budget_tokens + self.block

    def widened(self) -> Eviction | None:
        """The same rows with half of the block added to the budget; None where the block is small already."""
        if self.block <= _LEAST_BLOCK:
            return None
        block = max(_LEAST_BLOCK, self.block // 2)
        return dataclasses.replace(self, budget_tokens=self.rows - block, block=block)

    @property
    def needs_attention(self) -> bool:
        """Whether the engine must show attention scores."""
        return "attention" in get_policy(self.policy).needs

    def to_json(self) -> dict[str, Any]:
        """Plain data with stable names."""
        return {**dataclasses.asdict(self), "rows": self.rows}

    def __str__(self) -> str:
        how = "each head its own" if self.level == "head" else "whole tokens"
        where = "holes closed" if self.positions == "close" else "positions kept"
        return f"{self.policy}, {self.budget_tokens} tokens kept ({how}, {where}), {self.block} read at a time"


def working_bytes(spec: ModelSpec, eviction: Eviction, keys_copied_bytes: int) -> int:
    """What looking at the rows takes while it lasts. keys_copied_bytes: what the engine copies before it shows keys.

    Keys are looked at layer by layer, in float64, in three arrays at a time; attention is kept by row, and for the last
    queries one by one, twice while it grows.
    """
    policy = get_policy(eviction.policy)
    scores = 3 * 8 * spec.layers * spec.kv_heads * eviction.rows
    total = scores
    if "keys" in policy.needs:
        total += 3 * 8 * spec.kv_heads * spec.head_dim * eviction.rows + keys_copied_bytes
    if "attention" in policy.needs:
        total += 2 * 4 * spec.layers * spec.heads * eviction.rows * (1 + policy.queries) + _WATCHING_BYTES
    return total


def parse_eviction(text: str) -> EvictionRequest:
    """From `POLICY[:BUDGET][:close|keep][:token|head]`. Raises PlanError that says which part is wrong."""
    name, *rest = text.strip().split(":")
    get_policy(name)
    fields: dict[str, Any] = {}
    for part in rest:
        if part in ("close", "keep"):
            _once(fields, "positions", part, text)
        elif part in ("token", "head"):
            _once(fields, "level", part, text)
        elif part.endswith("%"):
            _once(fields, "share", _share(part, text), text)
        elif part.isdigit():
            _once(fields, "tokens", int(part), text)
        else:
            try:
                _once(fields, "nbytes", parse_bytes(part), text)
            except ValueError as error:
                raise PlanError(
                    f"{part!r} in KV policy {text!r} is no budget (512, 64MB, 50%), nor close, keep, token or head"
                ) from error
    if len({"tokens", "nbytes", "share"} & set(fields)) > 1:
        raise PlanError(f"KV policy {text!r} has two budgets; give one")
    return EvictionRequest(policy=name, **fields)


def wanted_eviction(policy: EvictionRequest | None, overflow: str) -> EvictionRequest | None:
    """What the two settings together ask for. Raises PlanError where both name a way to evict."""
    if overflow not in _OVERFLOW_POLICY:
        return policy
    if policy is not None:
        raise PlanError(
            f"overflow {overflow!r} evicts with a policy of its own; with KV policy {policy} leave it at 'error'",
            clash=(f"overflow {overflow}", f"KV policy {policy}"),
        )
    return EvictionRequest(policy=_OVERFLOW_POLICY[overflow])


def _share(part: str, text: str) -> float:
    try:
        share = float(part[:-1]) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise PlanError(f"{part!r} in KV policy {text!r} is not a share above 0 and up to 100%")
    return share


def _once(fields: dict[str, Any], name: str, value: Any, text: str) -> None:
    if name in fields:
        raise PlanError(f"KV policy {text!r} says {name} twice")
    fields[name] = value
