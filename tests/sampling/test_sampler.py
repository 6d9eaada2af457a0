"""The sampler itself: draws follow the distribution, seeds repeat, states rewind, bad input is refused."""

from __future__ import annotations

import copy
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wattwise.sampling import Sampler, SamplerParams
from wattwise.sampling.truncation import nucleus, sorted_candidates, top_k
from wattwise_devices.errors import BackendError, PlanError

LOGITS = (np.random.default_rng(0).standard_normal(400) * 2).astype(np.float32)
ALL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
KNOWN = [30, 37, 260, 280, 208, 281, 147, 126]


@pytest.mark.parametrize("params", [{}, {"top_k": 0, "temperature": 1.5}, {**ALL, "temperature": 0.7}, {"mirostat": 2}])
def test_draws_follow_the_distribution(params) -> None:
    """Chi-square over 20,000 draws; 6 standard deviations of the statistic are allowed."""
    sampler = Sampler(SamplerParams(seed=11, **params))
    ids, chances = sampler.distribution(LOGITS)
    draws = 20_000
    counts = dict.fromkeys(ids.tolist(), 0)
    for _ in range(draws):
        counts[sampler.sample(LOGITS)] += 1
    expected = chances * draws
    common = expected >= 5
    observed = np.array([counts[i] for i in ids.tolist()], dtype=float)
    groups = np.append(expected[common], max(expected[~common].sum(), 1e-9))
    seen = np.append(observed[common], observed[~common].sum())
    statistic = float(((seen - groups) ** 2 / groups)[groups > 1].sum())
    freedom = int((groups > 1).sum()) - 1
    assert freedom >= 3
    assert statistic < freedom + 6 * np.sqrt(2 * freedom)


def draw(sampler: Sampler, count: int) -> list[int]:
    rng = np.random.default_rng(1)
    out = []
    for _ in range(count):
        out.append(sampler.sample((rng.standard_normal(300) * 2).astype(np.float32)))
        sampler.accept(out[-1])
    return out


def test_the_seed_decides() -> None:
    one = draw(Sampler(SamplerParams(seed=5)), 30)
    assert draw(Sampler(SamplerParams(seed=5)), 30) == one
    assert draw(Sampler(SamplerParams(), seed=5), 30) == one
    assert draw(Sampler(SamplerParams(seed=5), seed=6), 30) == one  # the params come first
    assert draw(Sampler(SamplerParams(seed=6)), 30) != one
    assert draw(Sampler(SamplerParams()), 30) != draw(Sampler(SamplerParams()), 30)


def test_known_draws() -> None:
    """A seed gives the same text in every release: these ids were written down once."""
    assert draw(Sampler(SamplerParams(seed=5)), 8) == KNOWN


@pytest.mark.parametrize("params", [{"repeat_penalty": 1.4, "repeat_last_n": 7}, {"mirostat": 2, "mirostat_tau": 3.0}])
def test_rewind_and_clone(params) -> None:
    sampler = Sampler(SamplerParams(seed=2, **params), history=[1, 2, 3])
    draw(sampler, 10)
    before, twin = sampler.state(), sampler.clone()
    later = draw(sampler, 20)
    assert draw(twin, 20) == later
    sampler.restore(before)
    assert sampler.history == (1, 2, 3, *sampler.history[3:])
    assert len(sampler.history) == 13
    assert draw(sampler, 20) == later


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(-1, 12), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_history_may_grow_and_shrink(tokens, last_n, keep) -> None:
    """Counting token by token, truncating or starting over gives the same penalties."""
    params = SamplerParams(**ALL, repeat_last_n=last_n, frequency_penalty=0.3, presence_penalty=0.1)
    sampler = Sampler(params)
    for token in tokens:
        sampler.accept(token)
    fresh = Sampler(params, history=tokens)
    np.testing.assert_array_equal(sampler.distribution(LOGITS)[1], fresh.distribution(LOGITS)[1])
    keep = min(keep, len(tokens))
    sampler.truncate(keep)
    fresh.reset(tokens[:keep])
    assert sampler.history == tuple(tokens[:keep])
    np.testing.assert_array_equal(sampler.distribution(LOGITS)[1], fresh.distribution(LOGITS)[1])


def test_penalties_by_hand() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.0], dtype=np.float32)
    params = SamplerParams(**ALL, temperature=1, repeat_penalty=2, frequency_penalty=0.5, presence_penalty=0.25)
    ids, chances = Sampler(params, history=[0, 0, 1]).distribution(logits)
    expected = np.array([2 / 2 - 2 * 0.5 - 0.25, -2 * 2 - 0.5 - 0.25, 1, 0])
    np.testing.assert_allclose(chances, np.exp(expected) / np.exp(expected).sum(), rtol=1e-6)
    assert ids.tolist() == [0, 1, 2, 3]
    assert logits.tolist() == [2, -2, 1, 0]  # the engine's row is left alone


def test_bias_can_forbid_and_force() -> None:
    best = int(LOGITS.argmax())
    assert Sampler(SamplerParams(temperature=0)).sample(LOGITS) == best
    assert Sampler(SamplerParams(temperature=0, logit_bias={best: float("-inf")})).sample(LOGITS) != best
    sampler = Sampler(SamplerParams(logit_bias={17: 100.0}, seed=1))
    assert {sampler.sample(LOGITS) for _ in range(20)} == {17}
    with pytest.raises(PlanError, match="token 400; the vocabulary has 400"):
        Sampler(SamplerParams(logit_bias={400: 1.0})).sample(LOGITS)


def test_dry_by_hand() -> None:
    """`1 2 3` stood before `4`: after another `1 2 3` the token 4 loses 0.5 * 2 ** (3 - 2)."""
    params = SamplerParams(
        **ALL, temperature=1, dry_multiplier=0.5, dry_base=2, dry_allowed_length=2, dry_sequence_breakers=()
    )
    chances = Sampler(params, history=[1, 2, 3, 4, 1, 2, 3]).distribution(np.zeros(10, np.float32))[1]
    weights = np.exp([-1.0 if i == 4 else 0.0 for i in range(10)])
    np.testing.assert_allclose(chances, weights / weights.sum(), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_k": 0}, ALL, {"mirostat": 2}, {"typical_p": 0.5}])
def test_logits_that_are_no_numbers(params, bad) -> None:
    logits = LOGITS.copy()
    logits[7:9] = bad
    if bad == -np.inf:
        logits[:] = bad
    with pytest.raises(BackendError, match="cannot be drawn from"):
        Sampler(SamplerParams(**params)).sample(logits)


@pytest.mark.parametrize(
    "params", [{"temperature": 0}, {}, {"top_k": 0, "min_p": 0}, ALL, {"typical_p": 0.5, "top_k": 0}]
)
def test_forbidden_tokens_are_never_drawn(params) -> None:
    logits = np.full(50, -np.inf, dtype=np.float32)
    logits[[3, 40]] = [1.0, 2.0]
    sampler = Sampler(SamplerParams(seed=3, **params))
    assert {sampler.sample(logits) for _ in range(50)} <= {3, 40}


finite = st.floats(-50, 50, width=32)


@given(arrays(np.float32, st.integers(1, 3000), elements=finite), st.integers(1, 400))
@settings(max_examples=150, deadline=None)
def test_selection_equals_sorting(logits, k) -> None:
    """The shortcut finds what sorting everything finds, ties included."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    np.testing.assert_array_equal(sorted_candidates(np.arange(len(logits)), logits)[0], order)
    np.testing.assert_array_equal(top_k(logits, k)[0], order[:k])


@given(
    arrays(np.float32, st.integers(1, 5000), elements=finite), st.floats(0, 0.999), st.sampled_from([0.0, 0.01, 0.3])
)
@settings(max_examples=150, deadline=None)
def test_nucleus_equals_its_definition(logits, p, min_p) -> None:
    order = np.lexsort((np.arange(len(logits)), -logits))
    weights = np.exp(logits[order] - logits.max())
    before = np.append(0.0, np.cumsum(weights, dtype=np.float64)[:-1])
    keep = before < np.float32(p) * weights.sum(dtype=np.float64)
    keep[0] = True
    if min_p:
        keep &= logits[order] >= np.float32(logits.max() + np.log(np.float32(min_p)))
    ids = nucleus(logits, p, min_p)[0]
    assert abs(len(ids) - keep.sum()) <= 1  # the two sums may round to either side
    np.testing.assert_array_equal(ids, order[: len(ids)])


def test_params_are_values() -> None:
    params = SamplerParams(logit_bias={1: -1.0}, seed=4)
    assert pickle.loads(pickle.dumps(params)) == params == copy.deepcopy(params)
    with pytest.raises(TypeError):
        params.logit_bias[1] = 2  # type: ignore[index]


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; allowed: 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_k": True}, "top_k is True"),
        ({"top_p": 1.1}, "top_p is 1.1; allowed: 0 to 1"),
        ({"min_p": -0.1}, "min_p"),
        ({"typical_p": 2}, "typical_p"),
        ({"mirostat": 1}, "mirostat is 1; allowed: 0 or 2"),
        ({"repeat_penalty": 0}, "repeat_penalty is 0; allowed: more than 0"),
        ({"repeat_last_n": -2}, "repeat_last_n is -2"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty"),
        ({"dry_multiplier": 1, "dry_base": 0.5}, "dry_base"),
        ({"dry_sequence_breakers": ":"}, "list of texts"),
        ({"dry_sequence_breakers": ("",)}, "1 to 40 bytes"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias is -1"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias of token 1"),
        ({"logit_bias": {1: float("inf")}}, "logit_bias of token 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 64}, "seed"),
        ({"mirostat": 2, "temperature": 0}, "mirostat draws at random"),
        ({"mirostat": 2, "top_k": 5}, "mirostat replaces top_k"),
    ],
)
def test_bad_settings_are_refused(params, match) -> None:
    with pytest.raises(PlanError, match=match):
        SamplerParams(**params)


def test_dry_breakers_need_a_tokenizer() -> None:
    with pytest.raises(PlanError, match="tokenizer"):
        Sampler(SamplerParams(dry_multiplier=1.0))


def test_wrong_calls() -> None:
    sampler = Sampler(SamplerParams(), history=[1, 2])
    with pytest.raises(ValueError, match="cannot go back to 3"):
        sampler.truncate(3)
    with pytest.raises(ValueError, match="one row"):
        sampler.sample(np.zeros((2, 5), np.float32))


def test_cost_of_a_draw() -> None:
    """Bars: 150 microseconds at 32,000 tokens with temperature, top-p and min-p, tripled for busy machines."""
    logits = (np.random.default_rng(0).standard_normal(32_000) * 3).astype(np.float32)
    for params, limit in (({"top_k": 0}, 450e-6), ({}, 450e-6), ({"temperature": 0}, 60e-6)):
        sampler = Sampler(SamplerParams(seed=1, **params))
        best = 1.0
        for _ in range(50):
            began = time.perf_counter()
            sampler.sample(logits)
            best = min(best, time.perf_counter() - began)
        assert best < limit, f"{params}: {best * 1e6:.0f} microseconds"
