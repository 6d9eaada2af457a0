"""What every KV policy must do (a row each by being found), and each one's formula written out once more, plainly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from formulas import FORMULAS, best, plain_h2o
from made_up import KV_HEADS, LAYERS, made_up_sight

from wattwise.kv.policy import Policy, get_policy, policy_names
from wattwise.kv.selection import choose, rows_of
from wattwise.kv.sight import Sight
from wattwise_devices.errors import BudgetError, PlanError

ROWS, BUDGET = 40, 17
NOTHING = np.zeros(0, np.int64)


@pytest.fixture(params=policy_names())
def policy(request: pytest.FixtureRequest) -> Policy:
    return get_policy(request.param)


def test_the_policies_that_are_promised_are_there() -> None:
    assert {"window", "keydiff", "knorm", "snapkv", "h2o", "tova"} <= set(policy_names())
    with pytest.raises(PlanError, match="keydiff"):
        get_policy("oracle")


def test_a_policy_says_who_it_is(policy: Policy) -> None:
    assert get_policy(policy.name) is policy
    assert "arXiv" in policy.source
    assert policy.needs <= {"keys", "attention"}
    assert policy.positions in ("keep", "close")
    assert 0 <= policy.recent_share < 1


@pytest.mark.parametrize("by_head", [False, True])
def test_a_policy_keeps_to_its_budget(policy: Policy, by_head: bool) -> None:
    sight = made_up_sight(ROWS)
    kept = choose(policy, sight, BUDGET, protected=NOTHING, recent=1, by_head=by_head)
    assert kept.shape == ((LAYERS, KV_HEADS, BUDGET) if by_head else (BUDGET,))
    assert np.all(np.diff(kept) > 0)
    assert np.all((kept >= 0) & (kept < ROWS))
    assert np.all(kept[..., -1] == ROWS - 1), "the newest row is what decoding continues from"


@pytest.mark.parametrize("by_head", [False, True])
def test_protected_and_recent_rows_stay_whatever_they_score(policy: Policy, by_head: bool) -> None:
    sight = made_up_sight(ROWS)
    protected = np.array([0, 1, 2, 3, 11, 12, 999])
    kept = choose(policy, sight, BUDGET, protected=protected, recent=5, by_head=by_head)
    must = {0, 1, 2, 3, 11, 12, *range(ROWS - 5, ROWS)}
    for row in kept.reshape(-1, BUDGET):
        assert must <= set(row.tolist())


def test_what_must_stay_and_does_not_fit_is_refused_with_both_numbers(policy: Policy) -> None:
    with pytest.raises(BudgetError, match="17") as caught:
        choose(policy, made_up_sight(ROWS), BUDGET, protected=np.arange(15), recent=5, by_head=False)
    assert caught.value.allowed == BUDGET
    assert caught.value.needed is not None and caught.value.needed >= 20


def test_nothing_is_dropped_that_need_not_be(policy: Policy) -> None:
    sight = made_up_sight(ROWS)
    assert choose(policy, sight, ROWS, protected=NOTHING, recent=1, by_head=False).tolist() == list(range(ROWS))


def test_a_policy_is_pure(policy: Policy) -> None:
    sight, again = made_up_sight(ROWS), made_up_sight(ROWS)
    first, second = policy.scores(sight), policy.scores(sight)
    assert first.shape == (LAYERS, KV_HEADS, ROWS)
    assert first.dtype == np.float64
    assert np.array_equal(first, second)
    for part in ("keys", "total", "chances", "recent"):
        for layer in range(LAYERS):
            assert np.array_equal(getattr(sight, part)(layer), getattr(again, part)(layer)), f"{part} was changed"


def test_a_policy_without_what_it_needs_refuses_by_name(policy: Policy) -> None:
    blind = Sight(positions=made_up_sight(ROWS).positions)
    if not policy.needs:
        policy.scores(blind)
        return
    with pytest.raises(PlanError):
        policy.scores(blind)


def test_equal_scores_keep_the_newer_rows() -> None:
    class Indifferent:
        name, source, needs, queries, recent_share, positions = "x", "arXiv", frozenset(), 0, 0.0, "keep"

        def scores(self, sight: Sight) -> np.ndarray:
            return np.zeros((LAYERS, KV_HEADS, sight.rows))

    kept = choose(Indifferent(), made_up_sight(ROWS), 5, protected=np.array([2]), recent=1, by_head=False)  # type: ignore[arg-type]
    assert kept.tolist() == [2, 36, 37, 38, 39]


def test_rows_of_kept_positions() -> None:
    sight = made_up_sight(ROWS)
    holes = dataclasses.replace(sight, positions=sight.positions * 3)
    assert rows_of(holes, np.array([0, 6, 117])).tolist() == [0, 2, 39]
    by_head = np.broadcast_to([3, 117], (LAYERS, KV_HEADS, 2))
    assert rows_of(holes, by_head)[1, 1].tolist() == [1, 39]


# ------------------------------------------------------------- the papers' formulas, see formulas.py


@pytest.mark.parametrize("name", FORMULAS)
def test_positions_by_head_are_those_of_the_papers_formula(name: str) -> None:
    sight = made_up_sight(ROWS, seed=7)
    budget = 22
    kept = choose(get_policy(name), sight, budget, protected=NOTHING, recent=1, by_head=True)
    for layer in range(LAYERS):
        for head in range(KV_HEADS):
            assert kept[layer, head].tolist() == best(FORMULAS[name](sight, layer, head), budget)


def test_h2o_gives_half_to_recent_rows_and_half_to_heavy_hitters() -> None:
    sight = made_up_sight(ROWS, seed=7)
    kept = choose(get_policy("h2o"), sight, 20, protected=NOTHING, recent=1, by_head=True)
    for layer in range(LAYERS):
        for head in range(KV_HEADS):
            scores = plain_h2o(sight, layer, head)
            heavy = sorted(range(ROWS - 10), key=lambda row: (-scores[row], -row))[:10]
            assert kept[layer, head].tolist() == sorted([*heavy, *range(ROWS - 10, ROWS)])


def test_window_is_sinks_and_the_newest() -> None:
    kept = choose(get_policy("window"), made_up_sight(ROWS), 12, protected=np.arange(4), recent=1, by_head=False)
    assert kept.tolist() == [0, 1, 2, 3, *range(32, 40)]
