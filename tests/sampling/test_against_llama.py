"""Each sampler, and chains of them, against llama.cpp's own on the same logits."""

from __future__ import annotations

import numpy as np
import pytest

from sampling.llama_chain import logit_bias, run_chain
from text.llama_vocab import llama_vocabulary, write_vocabulary
from text.tiny import byte_level
from wattwise.sampling import Sampler, SamplerParams
from wattwise_runtimes.text.tokenizer import Tokenizer

pytestmark = pytest.mark.llama
pytest.importorskip("llama_cpp")

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def rows(count: int, size: int, scale: float, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(size) * scale).astype(np.float32) for _ in range(count)]


def assert_same(ours: Sampler, logits: np.ndarray, make, history=()) -> int:
    """Equal candidates and probabilities; the number of candidates.

    llama.cpp adds probabilities up one after the other in float32, so its cuts can fall earlier or later by the
    rounding of that sum, at most size * 2**-24; a handful of tokens of that weight may differ.
    """
    rounding = max(len(logits) * 2.0**-24, 2e-6)
    expected = {token: p for token, p in run_chain(logits, make, history).items() if p > 0}
    ids, chances = ours.distribution(logits)
    found = {int(token): p for token, p in zip(ids, chances, strict=True) if p > 0}
    assert chances.sum() == pytest.approx(1, abs=1e-12)
    assert sum(p for token, p in found.items() if token not in expected) <= rounding
    assert sum(p for token, p in expected.items() if token not in found) <= rounding
    shared = sorted(found.keys() & expected.keys())
    np.testing.assert_allclose([expected[i] for i in shared], [found[i] for i in shared], rtol=rounding + 2e-5)
    return len(expected)


SINGLE = {
    "temperature": ({"temperature": 0.6}, lambda lib: lib.llama_sampler_init_temp(0.6)),
    "top_k 7": ({"top_k": 7}, lambda lib: lib.llama_sampler_init_top_k(7)),
    "top_k all": ({"top_k": 5000}, lambda lib: lib.llama_sampler_init_top_k(5000)),
    "top_p 0.8": ({"top_p": 0.8}, lambda lib: lib.llama_sampler_init_top_p(0.8, 0)),
    "top_p 0.999": ({"top_p": 0.999}, lambda lib: lib.llama_sampler_init_top_p(0.999, 0)),
    "top_p 0": ({"top_p": 0.0}, lambda lib: lib.llama_sampler_init_top_p(0.0, 0)),
    "min_p 0.05": ({"min_p": 0.05}, lambda lib: lib.llama_sampler_init_min_p(0.05, 0)),
    "min_p 1": ({"min_p": 1.0}, lambda lib: lib.llama_sampler_init_min_p(1.0, 0)),
    "typical 0.9": ({"typical_p": 0.9}, lambda lib: lib.llama_sampler_init_typical(0.9, 0)),
    "typical 0.2": ({"typical_p": 0.2}, lambda lib: lib.llama_sampler_init_typical(0.2, 0)),
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize(("size", "scale"), [(10, 1.0), (300, 2.0), (5000, 3.0), (32000, 4.0)])
def test_one_sampler(name, size, scale) -> None:
    params, make = SINGLE[name]
    for logits in rows(5, size, scale, seed=size):
        assert_same(Sampler(SamplerParams(**{**OFF, **params})), logits, [make])


CHAINS = [
    {},
    {"top_k": 0},
    {"top_k": 0, "min_p": 0.0},
    {"top_k": 0, "top_p": 1.0},
    {"top_k": 100, "top_p": 0.5, "min_p": 0.0, "temperature": 1.7},
    {"top_k": 20, "typical_p": 0.7},
    {"top_k": 0, "typical_p": 0.95, "top_p": 0.9, "min_p": 0.02, "temperature": 0.3},
    {"top_k": 0, "top_p": 0.9, "min_p": 0.3},
    {"top_k": 3, "top_p": 0.99, "min_p": 0.001},
]


@pytest.mark.parametrize("settings", CHAINS, ids=str)
def test_chain_in_the_default_order(settings) -> None:
    params = SamplerParams(**settings)
    make = [
        lambda lib: lib.llama_sampler_init_top_k(params.top_k),
        lambda lib: lib.llama_sampler_init_typical(params.typical_p, 0),
        lambda lib: lib.llama_sampler_init_top_p(params.top_p, 0),
        lambda lib: lib.llama_sampler_init_min_p(params.min_p, 0),
        lambda lib: lib.llama_sampler_init_temp(params.temperature),
    ]
    for size, scale in ((50, 1.0), (4000, 2.5), (32000, 5.0)):
        for logits in rows(6, size, scale, seed=size + 1):
            assert_same(Sampler(params), logits, make)


@pytest.mark.parametrize("last_n", [0, 5, 64, 500])
@pytest.mark.parametrize(
    "penalty",
    [(1.3, 0.0, 0.0), (0.8, 0.0, 0.0), (1.0, 0.7, 0.0), (1.0, 0.0, 0.5), (1.2, 0.3, -0.4)],
)
def test_penalties(last_n, penalty) -> None:
    rng = np.random.default_rng(last_n)
    for logits in rows(4, 200, 3.0, seed=9):
        history = rng.integers(0, 60, 150).tolist()
        ours = Sampler(
            SamplerParams(
                **OFF, repeat_last_n=last_n, repeat_penalty=penalty[0], frequency_penalty=penalty[1],
                presence_penalty=penalty[2],
            ),
            history=history[:100],
        )  # fmt: skip
        for token in history[100:]:
            ours.accept(token)
        assert_same(ours, logits, [lambda lib: lib.llama_sampler_init_penalties(200, last_n, *penalty)], history)


def test_penalty_over_the_whole_history() -> None:
    history = np.random.default_rng(3).integers(0, 60, 300).tolist()
    logits = rows(1, 200, 3.0, seed=4)[0]
    ours = Sampler(SamplerParams(**OFF, repeat_last_n=-1, frequency_penalty=0.1), history=history)
    assert_same(ours, logits, [lambda lib: lib.llama_sampler_init_penalties(200, 300, 1.0, 0.1, 0.0)], history)


def test_bias_then_penalties_then_the_rest() -> None:
    bias = {3: 5.0, 7: float("-inf"), 11: -2.5}
    history = [3, 3, 11, 20, 21]
    params = SamplerParams(logit_bias=bias, repeat_penalty=1.5, presence_penalty=0.2, top_k=30)
    for logits in rows(10, 400, 2.0, seed=12):
        assert_same(
            Sampler(params, history=history),
            logits,
            [
                logit_bias(bias, 400),
                lambda lib: lib.llama_sampler_init_penalties(400, 64, 1.5, 0.0, 0.2),
                lambda lib: lib.llama_sampler_init_top_k(30),
                lambda lib: lib.llama_sampler_init_top_p(0.95, 0),
                lambda lib: lib.llama_sampler_init_min_p(0.05, 0),
                lambda lib: lib.llama_sampler_init_temp(0.8),
            ],
            history,
        )


DRY = {"dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": 64}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory):
    tokenizer = Tokenizer(byte_level())
    with llama_vocabulary(write_vocabulary(tokenizer.vocabulary, tmp_path_factory.mktemp("v") / "v.gguf")) as theirs:
        yield tokenizer, theirs


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dry_penalty_last_n": 10},
        {"dry_penalty_last_n": 1000},
        {"dry_allowed_length": 0},
        {"dry_allowed_length": 5},
        {"dry_base": 1.0},
        {"dry_base": 1.1, "dry_multiplier": 2.0},
        {"dry_sequence_breakers": ("hello w", "\n\n", "llo", "wor")},
        {"dry_sequence_breakers": ()},
    ],
    ids=str,
)
def test_dry(change, vocabulary) -> None:
    tokenizer, theirs = vocabulary
    params = SamplerParams(**{**OFF, **DRY, **change})
    breakers = [text.encode() for text in params.dry_sequence_breakers]
    import ctypes

    array = (ctypes.c_char_p * max(1, len(breakers)))(*breakers)

    def make(lib):
        return lib.llama_sampler_init_dry(
            theirs.vocab, params.dry_multiplier, params.dry_base, params.dry_allowed_length, params.dry_penalty_last_n,
            array, len(breakers),
        )  # fmt: skip

    rng = np.random.default_rng(7)
    words = ["hello", " world", "hello world", "im", "a", "b", "\n", ": ", "llo w", "x" * 9]
    penalised = 0
    for logits in rows(25, tokenizer.vocab_size, 2.0, seed=8):
        history = tokenizer.encode("".join(rng.choice(words, rng.integers(1, 40))))
        ours = Sampler(params, tokenizer, history=history)
        assert_same(ours, logits, [make], history)
        penalised += not np.array_equal(ours._adjusted(logits), logits)
    assert penalised >= 1


def test_dry_on_one_token_over_and_over(vocabulary) -> None:
    tokenizer, theirs = vocabulary
    history = tokenizer.encode("a" * 3000)
    params = SamplerParams(**OFF, dry_multiplier=0.5, dry_base=1.2, dry_penalty_last_n=-1, dry_sequence_breakers=())

    def make(lib):
        return lib.llama_sampler_init_dry(theirs.vocab, 0.5, 1.2, 2, 3000, None, 0)

    assert_same(Sampler(params, history=history), rows(1, tokenizer.vocab_size, 1.0, 1)[0], [make], history)


def test_mirostat_adapts_alike() -> None:
    """Both are led through the same tokens: ours is told what llama.cpp drew."""
    import ctypes

    import llama_cpp.llama_cpp as lib

    chain = lib.llama_sampler_init_mirostat_v2(3, 4.0, 0.2)
    ours = Sampler(SamplerParams(mirostat=2, mirostat_tau=4.0, mirostat_eta=0.2, temperature=0.7))
    sizes = []
    for logits in rows(40, 3000, 2.0, seed=5):
        scaled = logits / np.float32(0.7)
        data = (lib.llama_token_data * 3000)(*((i, float(value), 0.0) for i, value in enumerate(scaled)))
        array = lib.llama_token_data_array(data=data, size=3000, selected=-1, sorted=False)
        lib.llama_sampler_apply(chain, ctypes.byref(array))
        expected = {array.data[i].id: array.data[i].p for i in range(array.size)}
        ids, chances = ours.distribution(logits)
        assert set(ids.tolist()) == set(expected)
        np.testing.assert_allclose([expected[int(i)] for i in ids], chances, rtol=1e-4)
        ours.accept(array.data[array.selected].id)
        sizes.append(len(ids))
    lib.llama_sampler_free(chain)
    assert len(set(sizes)) > 5


def test_temperature_zero_takes_the_likeliest() -> None:
    for settings in ({}, {"top_k": 0}, {"typical_p": 0.5}):
        params = SamplerParams(temperature=0, **settings)
        make = [
            lambda lib, params=params: lib.llama_sampler_init_top_k(params.top_k),
            lambda lib, params=params: lib.llama_sampler_init_typical(params.typical_p, 0),
            lambda lib: lib.llama_sampler_init_temp(0.0),
        ]
        for logits in rows(5, 1000, 2.0, seed=6):
            expected = run_chain(logits, make)
            assert Sampler(params).sample(logits) == max(expected, key=expected.__getitem__)
