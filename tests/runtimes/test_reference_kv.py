"""The reference engine's own head rows and shifts, against masks and against plain trigonometry."""

from __future__ import annotations

import numpy as np

from support.specs import TINY_SPECS, random_weights
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine, maths

SPEC = TINY_SPECS["llama"]
WEIGHTS = random_weights(SPEC)
LOAD = LoadSpec(context=64, chunk=64, kv_type="f32")
IDS = [int(i) for i in np.random.default_rng(1).integers(3, SPEC.vocab, 24)]


def test_rows_dropped_by_head_are_rows_that_the_head_does_not_see(monkeypatch) -> None:
    rng = np.random.default_rng(4)
    keep = np.array(
        [[[*sorted(rng.permutation(19)[:11]), 19] for _ in range(SPEC.kv_heads)] for _ in range(SPEC.layers)]
    )
    dropped = ~np.any(keep[..., None] == np.arange(20), axis=2)
    evicted = ReferenceEngine(SPEC, WEIGHTS, LOAD)
    evicted.forward(Batch(IDS[:20]))
    evicted.kv.drop_by_head(keep)
    got = evicted.forward(Batch(IDS[20:], logits="all"))

    full = ReferenceEngine(SPEC, WEIGHTS, LOAD)
    full.forward(Batch(IDS[:20]))
    calls = iter(range(SPEC.layers))
    plain = maths.attend

    def masked(q, k, v, visible, scale, cap):
        hidden = np.zeros((SPEC.kv_heads, 1, k.shape[1]), bool)
        hidden[:, 0, :20] = dropped[next(calls)]
        return plain(q, k, v, visible[None] & ~hidden, scale, cap)

    monkeypatch.setattr(maths, "attend", masked)
    want = full.forward(Batch(IDS[20:], logits="all"))
    assert np.abs(got - want).max() < 1e-5


def test_a_shift_turns_each_pair_by_its_own_angle() -> None:
    engine = ReferenceEngine(SPEC, WEIGHTS, LOAD)
    engine.forward(Batch(IDS[:10]))
    before = engine.kv.view().keys(1)
    engine.kv.shift(4, 10, 7)
    after = engine.kv.view().keys(1)
    assert np.array_equal(after[:, :4], before[:, :4])
    half = SPEC.rope.dims // 2
    angle = 7 * SPEC.rope.base ** (-2 * np.arange(half) / SPEC.rope.dims)
    turned = (before[..., :half] + 1j * before[..., half : 2 * half]) * np.exp(1j * angle)
    assert np.abs(after[:, 4:, :half] - turned.real[:, 4:]).max() < 1e-5
    assert np.abs(after[:, 4:, half : 2 * half] - turned.imag[:, 4:]).max() < 1e-5
