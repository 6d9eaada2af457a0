"""forward: trees of any shape, cancelling inside a chunk, interrupts, and few rows of logits at a time."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from support.llama_engines import WIDE, artifact, error, ids, load, load_spec, logits, reference
from support.specs import TINY_SPECS
from wattwise_devices.errors import BackendError, PlanError
from wattwise_runtimes.contracts import Batch, ForwardCancelled
from wattwise_runtimes.engines.llamacpp import BACKEND
from wattwise_runtimes.engines.llamacpp import engine as engine_module
from wattwise_runtimes.engines.llamacpp.engine import LlamaEngine, leaves_below

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.llama

SPEC = TINY_SPECS["llama"]
HEAVY = dataclasses.replace(WIDE, layers=6, hidden=512, heads=8, kv_heads=4, ffn=2048, vocab=256)  # a slow chunk


def random_tree(rng: np.random.Generator, n: int, leaves: int) -> list[int]:
    """Parents of a tree of n nodes with at most so many leaves."""
    parents: list[int] = []
    tips: list[int] = []
    for node in range(n):
        if len(tips) < leaves and (not tips or rng.random() < 0.4):
            parent = int(rng.integers(-1, node)) if node else -1
        else:
            parent = tips[int(rng.integers(len(tips)))]
        if parent in tips:
            tips.remove(parent)
        tips.append(node)
        parents.append(parent)
    return parents


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_random_trees_equal_the_reference_round_after_round(kv_type: str, tmp_path: Path) -> None:
    engine, ref = load(tmp_path, SPEC, tree_leaves=6, kv_type=kv_type), reference(SPEC)
    rng = np.random.default_rng(4)
    most = 1e-3 if kv_type == "f32" else 2e-2
    for e in (engine, ref):
        e.forward(Batch(ids(10)))
    for _ in range(6):
        n = int(rng.integers(1, 14))
        parents = random_tree(rng, n, leaves=6)
        batch = Batch(ids(n, seed=int(rng.integers(99))), parents=parents, logits="all")
        got, want = engine.forward(batch).copy(), ref.forward(batch)
        assert error(got, want) < most
        node = int(rng.integers(-1, n))
        path: list[int] = []
        while node >= 0:
            path.insert(0, node)
            node = parents[node]
        for e in (engine, ref):
            e.kv.accept(path)
            if e.kv.length > 20:
                e.kv.drop(e.kv.positions[2:8])
        assert engine.kv.positions.tolist() == ref.kv.positions.tolist()
        assert error(logits(engine, [9, 8]), logits(ref, [9, 8])) < most
    engine.close()


def test_leaf_sequences_follow_the_leaves() -> None:
    #      0 -> 1 -> 3        5
    #        -> 2 -> 4
    assert leaves_below([-1, 0, 0, 1, 2, -1]) == [[1, 2], [1], [2], [1], [2], [3]]


def test_a_tree_beyond_what_was_loaded_is_refused_by_name(tmp_path: Path) -> None:
    engine = load(tmp_path, SPEC, tree_leaves=2)
    engine.forward(Batch(ids(5)))
    with pytest.raises(PlanError, match=r"3 leaves.*for 2"):
        engine.forward(Batch([1, 2, 3], parents=[-1, -1, -1]))
    most = engine.capabilities.tree_tokens
    with pytest.raises(PlanError, match=str(most + 1)):
        engine.forward(Batch([1] * (most + 1), parents=list(range(-1, most))))
    assert engine.kv.length == 5
    engine.forward(Batch([1, 2, 3], parents=[-1, 0, 0]))
    with pytest.raises(ValueError, match="path"):
        engine.kv.accept([1])
    engine.kv.accept([0, 2])
    assert engine.kv.length == 7
    engine.close()


def test_few_output_rows_at_a_time_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ids(60)
    want = logits(reference(SPEC), tokens)
    picked = [0, 1, 2, 3, 17, 18, 40, 41, 42, 59]
    for rows in (2, 3, 7):
        monkeypatch.setattr(engine_module.params, "output_rows", lambda spec, load, rows=rows: rows)
        engine = load(tmp_path, SPEC, chunk=16)
        assert error(logits(engine, tokens), want) < 1e-3
        engine.kv.clear()
        assert error(engine.forward(Batch(tokens, logits=picked)), want[picked]) < 1e-3
        assert engine.kv.length == 60
        engine.close()


def test_logits_of_one_chunk_are_a_view_that_the_next_call_overwrites(tmp_path: Path) -> None:
    engine = load(tmp_path, SPEC)
    first = engine.forward(Batch([5]))
    kept = first.copy()
    second = engine.forward(Batch([6]))
    assert second.base is first.base or np.shares_memory(first, second)
    assert not np.array_equal(first, kept)
    engine.close()


def heavy(tmp_path: Path) -> LlamaEngine:
    return BACKEND.load(artifact(tmp_path, HEAVY), load_spec(context=2048, chunk=512, kv_type="f16", threads=1))


def test_cancelling_stops_a_running_chunk(tmp_path: Path) -> None:
    engine = heavy(tmp_path)
    tokens = ids(512)
    started = time.perf_counter()
    engine.forward(Batch(tokens))
    whole = time.perf_counter() - started
    engine.kv.clear()
    engine.forward(Batch(tokens[:20]))
    at = time.perf_counter() + 0.25 * whole
    started = time.perf_counter()
    with pytest.raises(ForwardCancelled) as caught:
        engine.forward(Batch(tokens[20:]), lambda: time.perf_counter() > at)
    took = time.perf_counter() - started
    assert caught.value.rows_done == 0
    assert took < 0.75 * whole, f"stopped after {took:.3f} s, the whole chunk takes {whole:.3f} s"
    assert engine.kv.length == engine.kv.next_position == 20
    want = engine.forward(Batch(tokens[20:40])).copy()
    engine.kv.clear()
    assert error(engine.forward(Batch(tokens[:40])), want) < 1e-2, "nothing of the stopped chunk was left behind"
    engine.close()


def test_an_exception_while_computing_leaves_a_usable_engine(tmp_path: Path) -> None:
    engine = heavy(tmp_path)
    tokens = ids(400)
    calls: list[int] = []

    def cancelled() -> bool:
        calls.append(len(calls))
        if len(calls) > 1:
            raise ZeroDivisionError
        return False

    engine.forward(Batch(tokens[:5]))
    engine._seconds_per_row = 1.0  # long enough to be watched
    with pytest.raises(ZeroDivisionError):
        engine.forward(Batch(tokens[5:]), cancelled)
    assert engine.kv.length == 5
    assert engine.forward(Batch([7])).shape == (1, HEAVY.vocab)
    engine.close()


def test_ctrl_c_is_taken_inside_a_chunk(tmp_path: Path) -> None:
    engine = heavy(tmp_path)
    tokens = ids(512)
    engine.forward(Batch(tokens))
    started = time.perf_counter()
    engine.kv.truncate(0)
    engine.forward(Batch(tokens))
    whole = time.perf_counter() - started
    engine.kv.truncate(3)
    timer = threading.Timer(0.2 * whole, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        engine.forward(Batch(tokens[3:]), lambda: False)
    took = time.perf_counter() - started
    timer.join()
    assert took < 0.75 * whole, f"Ctrl-C took {took:.3f} s of a chunk of {whole:.3f} s"
    assert engine.kv.length == 3
    assert engine.forward(Batch([7])).shape == (1, HEAVY.vocab)
    engine.close()


def test_cancelling_a_tree_leaves_no_sequence_behind(tmp_path: Path) -> None:
    engine, ref = load(tmp_path, SPEC, tree_leaves=3), reference(SPEC)
    engine.forward(Batch(ids(10)))
    engine._seconds_per_row = 1.0
    engine._watched._flag.set()  # as if cancelled at once; cleared again by the watch
    with pytest.raises(ForwardCancelled):
        engine.forward(Batch([4, 5, 6], parents=[-1, 0, -1]), lambda: False)
    assert engine.kv.length == 10
    want = logits(ref, [*ids(10), 4, 5, 6])[10:]
    assert error(logits(engine, [4, 5, 6]), want) < 1e-3
    assert engine.kv.export() and engine.kv.length == 13
    engine.close()


def test_learned_positions_end_where_they_end(tmp_path: Path) -> None:
    spec = dataclasses.replace(TINY_SPECS["gpt2"], context=32)
    with pytest.raises(PlanError, match="learned positions"):
        load(tmp_path, spec, context=40)
    engine = load(tmp_path, spec, context=32)
    engine.forward(Batch(ids(32)))
    engine.kv.drop(range(5, 20))
    with pytest.raises(ValueError, match="32"):
        engine.forward(Batch([5]))
    assert engine.kv.length == 17
    engine.close()


@pytest.mark.parametrize(("original", "context"), [(512, 512), (512, 200), (512, 513), (32, 33)])
def test_long_rope_factors_follow_the_context_asked_for(original: int, context: int, tmp_path: Path) -> None:
    spec = TINY_SPECS["phi4-mini"]
    assert spec.rope is not None
    spec = dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, original_context=original))
    tokens = ids(24)
    engine = load(tmp_path, spec, context=context)
    assert error(logits(engine, tokens), logits(reference(spec, context=context), tokens)) < 1e-3
    engine.close()


def test_a_context_between_the_factors_and_the_rounding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="32"):  # 30 is rounded up to 256, the short factors end at 32
        load(tmp_path, TINY_SPECS["phi4-mini"], context=30)


def test_use_after_close_is_refused_everywhere(tmp_path: Path) -> None:
    engine = load(tmp_path, SPEC, tree_leaves=2)
    engine.forward(Batch([5]))
    keys = engine.kv.view().keys
    assert keys is not None
    engine.forward(Batch([5, 6], parents=[-1, -1]))
    engine.close()
    uses = (engine.kv.view, engine.kv.export, engine.kv.clear, engine.where, engine.nbytes)
    for use in (
        *uses,
        lambda: engine.kv.truncate(0),
        lambda: engine.kv.accept([0]),
        lambda: keys(0),
        lambda: engine.set_threads(1),
    ):
        with pytest.raises(BackendError, match="closed"):
            use()


def test_threads_can_change_between_calls(tmp_path: Path) -> None:
    engine = load(tmp_path, SPEC, threads=1)
    first = engine.forward(Batch([5])).copy()
    engine.set_threads(2)
    assert (engine.where()["threads"], engine.where()["threads_batch"]) == (2, 2)
    engine.kv.clear()
    assert error(engine.forward(Batch([5])), first) < 1e-4
    with pytest.raises(ValueError, match="0"):
        engine.set_threads(0)
    engine.close()
