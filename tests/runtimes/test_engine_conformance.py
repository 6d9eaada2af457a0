"""What every engine must do, member by member of `engines_under_test.ENGINES` (see `contracts.py` for why).

The yardstick of every expectation is a fresh reference engine that is given the plain chain of tokens (or the
chain with exactly the surviving rows), never the engine under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engines_under_test import ENGINES, Row

from support.specs import TINY_SPECS, random_weights
from wattwise_devices.errors import BackendError, ContextOverflow, CorruptArtifact, PlanError
from wattwise_runtimes.contracts import Batch, Engine, ForwardCancelled, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine

SPEC = TINY_SPECS["llama"]
WEIGHTS = random_weights(SPEC)
LOAD = LoadSpec(context=64, chunk=7, kv_type="f32")
IDS = [int(i) for i in np.random.default_rng(1).integers(3, SPEC.vocab, 40)]


@pytest.fixture(params=ENGINES, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    if request.param.needs:
        pytest.importorskip(request.param.needs)
    return request.param


@pytest.fixture
def engine(row: Row, tmp_path: Path) -> Iterator[Engine]:
    made = row.make(SPEC, WEIGHTS, LOAD, tmp_path)
    yield made
    made.close()


@pytest.fixture
def tree_engine(row: Row, tmp_path: Path) -> Iterator[Engine]:
    load = LoadSpec(context=64, chunk=7, kv_type="f32", tree_leaves=4)
    made = row.make(SPEC, WEIGHTS, load, tmp_path)
    if made.capabilities.tree_tokens == 0:
        made.close()
        pytest.skip(f"{row.name} has no trees")
    yield made
    made.close()


def reference() -> ReferenceEngine:
    return ReferenceEngine(SPEC, WEIGHTS, LOAD)


def expect(got: np.ndarray, want: np.ndarray, row: Row) -> None:
    assert got.dtype == np.float32
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= row.tolerance * want.std()


def test_logits_of_every_row_equal_the_reference(engine: Engine, row: Row) -> None:
    want = reference().forward(Batch(IDS, logits="all"))
    expect(engine.forward(Batch(IDS, logits="all")), want, row)
    assert engine.kv.length == engine.kv.next_position == len(IDS)
    assert engine.kv.positions.tolist() == list(range(len(IDS)))


def test_wanted_rows_are_the_rows_asked_for(engine: Engine, row: Row) -> None:
    want = reference().forward(Batch(IDS, logits="all"))
    picked = [0, 6, 7, 20, len(IDS) - 1]  # both sides of a chunk border
    expect(engine.forward(Batch(IDS, logits=picked)), want[picked], row)
    assert engine.forward(Batch(IDS[:3], logits="none")).shape == (0, SPEC.vocab)


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [3, 1, 20, 1, 1, 14], [39, 1]], ids=str)
def test_any_split_into_calls_gives_the_same_logits(engine: Engine, row: Row, sizes: list[int]) -> None:
    want = reference().forward(Batch(IDS))
    start = 0
    for size in sizes:
        got = engine.forward(Batch(IDS[start : start + size]))
        start += size
    expect(got, want, row)


def test_truncate_rewinds(engine: Engine, row: Row) -> None:
    engine.forward(Batch(IDS))
    engine.kv.truncate(11)
    assert engine.kv.length == engine.kv.next_position == 11
    other = [5, 9, 200, 31]
    want = reference().forward(Batch(IDS[:11] + other, logits="all"))[11:]
    expect(engine.forward(Batch(other, logits="all")), want, row)
    engine.kv.truncate(0)
    assert engine.kv.length == 0
    expect(engine.forward(Batch(IDS)), reference().forward(Batch(IDS)), row)


def test_clear_starts_over(engine: Engine, row: Row) -> None:
    engine.forward(Batch(IDS[:9]))
    engine.kv.clear()
    assert (engine.kv.length, engine.kv.next_position) == (0, 0)
    expect(engine.forward(Batch(IDS)), reference().forward(Batch(IDS)), row)


def test_dropped_rows_are_gone_and_positions_stay(engine: Engine, row: Row) -> None:
    if engine.capabilities.drop == "none":
        pytest.skip(f"{row.name} cannot drop rows")
    ref = reference()
    for e in (engine, ref):
        e.forward(Batch(IDS[:30]))
        e.kv.drop([2, 3, 4, 17, 28])
        assert e.kv.length == 25
        assert e.kv.next_position == 30
        assert 17 not in e.kv.positions
    want = ref.forward(Batch(IDS[30:], logits="all"))
    full = reference().forward(Batch(IDS, logits="all"))[30:]
    assert np.abs(want - full).max() > 0.01 * full.std(), "the test's own reference must feel the eviction"
    expect(engine.forward(Batch(IDS[30:], logits="all")), want, row)
    engine.kv.truncate(20)  # a rewind past a hole leaves the earlier holes alone
    assert engine.kv.positions.tolist() == [p for p in range(20) if p not in (2, 3, 4, 17)]


def test_dropped_rows_make_room(engine: Engine) -> None:
    if engine.capabilities.drop == "none":
        pytest.skip("cannot drop rows")
    capacity = engine.kv.capacity_tokens
    assert capacity == LOAD.context
    rng = np.random.default_rng(3)
    for _ in range(6):  # 6 x 30 tokens through 64 rows
        engine.forward(Batch(rng.integers(3, SPEC.vocab, 30)))
        held = engine.kv.positions
        engine.kv.drop(held[4 : max(4, len(held) - 10)])
        assert engine.kv.length <= 34
    assert engine.kv.next_position == 180


def test_drop_refuses_what_it_cannot_mean(engine: Engine) -> None:
    if engine.capabilities.drop == "none":
        pytest.skip("cannot drop rows")
    engine.forward(Batch(IDS[:10]))
    with pytest.raises(ValueError, match="9"):
        engine.kv.drop([9])
    with pytest.raises(ValueError, match="77"):
        engine.kv.drop([77])
    assert engine.kv.length == 10


def test_overflow_names_both_counts_and_changes_nothing(engine: Engine, row: Row) -> None:
    engine.forward(Batch(IDS[:30]))
    with pytest.raises(ContextOverflow) as caught:
        engine.forward(Batch(IDS))
    assert (caught.value.prompt_tokens, caught.value.limit, caught.value.held_tokens) == (40, 64, 30)
    assert engine.kv.length == 30
    expect(engine.forward(Batch(IDS[30:])), reference().forward(Batch(IDS)), row)


@pytest.mark.parametrize("bad", [[SPEC.vocab], [-1], []])
def test_bad_ids_are_refused(engine: Engine, bad: list[int]) -> None:
    with pytest.raises(ValueError):
        engine.forward(Batch(bad))
    assert engine.kv.length == 0


def test_cancelling_keeps_whole_chunks(engine: Engine, row: Row) -> None:
    calls = 0

    def cancelled() -> bool:
        nonlocal calls
        calls += 1
        return calls > 3

    with pytest.raises(ForwardCancelled) as caught:
        engine.forward(Batch(IDS), cancelled)
    done = caught.value.rows_done
    assert 0 <= done < len(IDS)
    assert engine.kv.length == engine.kv.next_position == done
    expect(engine.forward(Batch(IDS[done:])), reference().forward(Batch(IDS)), row)


def test_never_cancelled_is_the_same(engine: Engine, row: Row) -> None:
    expect(engine.forward(Batch(IDS), lambda: False), reference().forward(Batch(IDS)), row)


TREE = [7, 9, 11, 9, 30, 31]
PARENTS = [-1, 0, 0, 1, 2, -1]
PATHS = [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [5]]


def test_tree_rows_equal_their_own_chains(tree_engine: Engine, row: Row) -> None:
    prefix = IDS[:12]
    for path in PATHS:
        tree_engine.kv.clear()
        tree_engine.forward(Batch(prefix))
        got = tree_engine.forward(Batch(TREE, parents=PARENTS, logits="all")).copy()
        chain = [TREE[i] for i in path]
        want = reference().forward(Batch(prefix + chain, logits="all"))[len(prefix) :]
        expect(got[path], want, row)
        tree_engine.kv.accept(path)
        assert tree_engine.kv.positions.tolist() == list(range(len(prefix) + len(path)))
        after = reference().forward(Batch([*prefix, *chain, 42, 43], logits="all"))[-2:]
        expect(tree_engine.forward(Batch([42, 43], logits="all")), after, row)


def test_a_rejected_tree_leaves_no_trace(tree_engine: Engine, row: Row) -> None:
    tree_engine.forward(Batch(IDS[:12]))
    tree_engine.forward(Batch(TREE, parents=PARENTS, logits="none"))
    tree_engine.kv.accept([])
    assert tree_engine.kv.length == 12
    expect(tree_engine.forward(Batch(IDS[12:])), reference().forward(Batch(IDS)), row)


def test_an_open_tree_blocks_everything_else(tree_engine: Engine) -> None:
    tree_engine.forward(Batch(IDS[:12]))
    tree_engine.forward(Batch(TREE, parents=PARENTS))
    for call in (
        lambda: tree_engine.forward(Batch([1])),
        lambda: tree_engine.kv.truncate(3),
        lambda: tree_engine.kv.export(),
    ):
        with pytest.raises(ValueError, match="tree"):
            call()
    tree_engine.kv.clear()
    assert tree_engine.kv.length == 0


def test_a_tree_after_holes(tree_engine: Engine, row: Row) -> None:
    if tree_engine.capabilities.drop == "none":
        pytest.skip("cannot drop rows")
    ref = reference()
    for e in (tree_engine, ref):
        e.forward(Batch(IDS[:20]))
        e.kv.drop([3, 4, 9])
    want = ref.forward(Batch(TREE, parents=PARENTS, logits="all"))
    expect(tree_engine.forward(Batch(TREE, parents=PARENTS, logits="all")), want, row)
    tree_engine.kv.accept([0, 2, 4])
    assert tree_engine.kv.next_position == 23
    assert tree_engine.kv.length == 20


def test_trees_refuse_a_child_before_its_parent(tree_engine: Engine) -> None:
    with pytest.raises(ValueError, match="parent"):
        tree_engine.forward(Batch([5, 6], parents=[1, -1]))
    assert tree_engine.kv.length == 0


def test_without_tree_support_a_tree_is_refused_by_name(engine: Engine) -> None:
    if engine.capabilities.tree_tokens:
        pytest.skip("has trees without asking")
    with pytest.raises(ValueError, match="tree"):
        engine.forward(Batch(TREE, parents=PARENTS))
    assert engine.kv.length == 0


def test_view_gives_the_keys(engine: Engine, row: Row) -> None:
    ref = reference()
    for e in (engine, ref):
        e.forward(Batch(IDS[:20]))
        if e.capabilities.drop != "none":
            e.kv.drop([5, 6])
    if not engine.capabilities.keys:
        assert engine.kv.view().keys is None
        return
    view, want = engine.kv.view(), ref.kv.view()
    assert view.layers == SPEC.layers
    if engine.capabilities.drop != "none":
        assert view.positions.tolist() == want.positions.tolist()
        assert view.keys is not None and want.keys is not None
        for layer in range(SPEC.layers):
            assert np.abs(view.keys(layer) - want.keys(layer)).max() < max(1e-4, row.tolerance)


@pytest.fixture
def scoring_engine(row: Row, tmp_path: Path) -> Iterator[Engine]:
    """Loaded for reading attention."""
    load = replace(LOAD, attention_scores=True)
    try:
        made = row.make(SPEC, WEIGHTS, load, tmp_path)
    except PlanError as refusal:  # said by name is allowed
        pytest.skip(f"{row.name} has no attention scores: {refusal}")
    yield made
    made.close()


def test_view_gives_the_attention_of_the_last_chunk(scoring_engine: Engine, row: Row) -> None:
    engine, ref = scoring_engine, reference()
    assert engine.capabilities.attention
    tolerance = max(1e-5, 0.1 * row.tolerance)
    for tokens in (IDS[:20], IDS[20:26], IDS[26:27]):  # two chunks and six tokens more, one chunk, one token
        for e in (engine, ref):
            e.forward(Batch(tokens))
        view, want = engine.kv.view(), ref.kv.view()
        assert view.attention is not None and want.attention is not None
        for layer in range(SPEC.layers):
            got = view.attention(layer)
            assert got.shape == want.attention(layer).shape == (SPEC.heads, min(6, len(tokens)), ref.kv.length)
            assert got.dtype == np.float32
            assert np.abs(got.sum(axis=2) - 1).max() < 1e-3
            assert np.abs(got - want.attention(layer)).max() < tolerance
    engine.kv.drop([3, 4])
    assert engine.kv.view().attention is None, "scores over rows that are gone are no scores"
    engine.forward(Batch(IDS[27:33]))
    ref.kv.drop([3, 4])
    ref.forward(Batch(IDS[27:33]))
    got, want = engine.kv.view().attention, ref.kv.view().attention
    assert got is not None and want is not None
    assert np.abs(got(1) - want(1)).max() < tolerance, "by position, also after holes"


def test_scoring_changes_no_logits(scoring_engine: Engine, row: Row) -> None:
    expect(scoring_engine.forward(Batch(IDS, logits="all")), reference().forward(Batch(IDS, logits="all")), row)


def head_rows(length: int, kept: int, seed: int = 5) -> np.ndarray:
    """Other positions for every layer and KV head, the last two among them."""
    rng = np.random.default_rng(seed)
    heads = [np.sort(rng.permutation(length - 2)[: kept - 2]) for _ in range(SPEC.layers * SPEC.kv_heads)]
    chosen = np.stack(heads).reshape(SPEC.layers, SPEC.kv_heads, kept - 2)
    last = np.broadcast_to([length - 2, length - 1], (SPEC.layers, SPEC.kv_heads, 2))
    return np.concatenate([chosen, last], axis=2)


def test_heads_may_keep_different_rows(engine: Engine, row: Row) -> None:
    keep = head_rows(30, 12)
    if engine.capabilities.drop != "head":
        engine.forward(Batch(IDS[:30]))
        with pytest.raises(PlanError, match="head"):
            engine.kv.drop_by_head(keep)
        assert engine.kv.length == 30
        return
    ref = reference()
    for e in (engine, ref):
        e.forward(Batch(IDS[:30]))
        e.kv.drop_by_head(keep)
        assert (e.kv.length, e.kv.next_position) == (12, 30)
        assert e.kv.positions.tolist() == keep[0, 0].tolist()
        found = e.kv.view().head_positions
        assert found is not None
        assert all(np.array_equal(found(layer), keep[layer]) for layer in range(SPEC.layers))
    want = ref.forward(Batch(IDS[30:], logits="all"))
    full = reference().forward(Batch(IDS, logits="all"))[30:]
    assert np.abs(want - full).max() > 0.01 * full.std(), "the test's own reference must feel the eviction"
    expect(engine.forward(Batch(IDS[30:], logits="all")), want, row)
    view, wanted = engine.kv.view(), ref.kv.view()
    assert view.keys is not None and wanted.keys is not None
    for layer in range(SPEC.layers):
        assert np.abs(view.keys(layer) - wanted.keys(layer)).max() < max(1e-4, row.tolerance)


def test_head_rows_can_be_dropped_again_rewound_and_exported(engine: Engine, row: Row, tmp_path: Path) -> None:
    if engine.capabilities.drop != "head":
        pytest.skip("has no rows by head")
    keep, ref = head_rows(30, 12), reference()
    for e in (engine, ref):
        e.forward(Batch(IDS[:30]))
        e.kv.drop_by_head(keep)
        e.forward(Batch(IDS[30:36]))
        with pytest.raises(ValueError):
            e.kv.truncate(20)
        e.kv.truncate(33)
        assert (e.kv.length, e.kv.next_position) == (15, 33)
        e.kv.drop([29, 31])  # held by all
        again = np.concatenate([keep[:, :, :10], np.broadcast_to([30, 32], (*keep.shape[:2], 2))], axis=2)
        e.kv.drop_by_head(again[:, :, 3:])
    blob = engine.kv.export() if engine.capabilities.export else None
    want = ref.forward(Batch(IDS[33:], logits="all"))
    expect(engine.forward(Batch(IDS[33:], logits="all")), want, row)
    if blob is not None:
        engine.kv.clear()
        engine.kv.restore(blob)
        assert engine.kv.export() == blob
        expect(engine.forward(Batch(IDS[33:], logits="all")), want, row)
        other = reference()
        other.forward(Batch(IDS[:4]))
        with pytest.raises(ValueError, match="together"):
            engine.kv.export(0, 31)


def test_head_rows_that_cannot_be_are_refused(engine: Engine) -> None:
    if engine.capabilities.drop != "head":
        pytest.skip("has no rows by head")
    engine.forward(Batch(IDS[:10]))
    good = head_rows(10, 5)
    without_newest, not_held, disordered = good.copy(), good.copy(), good[:, :, ::-1]
    without_newest[1, 0, -1], not_held[0, 0, -1] = 7, 11
    for bad in (without_newest, not_held, disordered, good[:1], good[0], good[:, :, :0]):
        with pytest.raises(ValueError):
            engine.kv.drop_by_head(bad)
    assert engine.kv.length == 10


def test_shifted_keys_stand_where_they_were_moved_to(engine: Engine, row: Row) -> None:
    if not engine.capabilities.shift:
        engine.forward(Batch(IDS[:10]))
        with pytest.raises(PlanError):
            engine.kv.shift(5, 10, -2)
        return
    ref = reference()
    for e in (engine, ref):
        e.forward(Batch(IDS[:20]))
        e.kv.drop([6, 7, 8])
        e.kv.shift(9, 20, -3)
        assert e.kv.positions.tolist() == list(range(17))
        assert e.kv.next_position == 17
    want = ref.forward(Batch(IDS[20:], logits="all"))
    expect(engine.forward(Batch(IDS[20:], logits="all")), want, row)
    plain = reference()  # in the first layer keys depend on token and position only, so they are what they would be
    plain.forward(Batch([*IDS[:6], *IDS[9:]]))
    keys, exact = engine.kv.view().keys, plain.kv.view().keys
    assert keys is not None and exact is not None
    assert np.abs(keys(0) - exact(0)).max() < max(1e-4, row.tolerance)


def test_a_shift_may_open_a_gap(engine: Engine, row: Row) -> None:
    if not engine.capabilities.shift:
        pytest.skip("cannot shift")
    ref = reference()
    for e in (engine, ref):
        e.forward(Batch(IDS[:12]))
        e.kv.shift(8, 12, 5)
        assert e.kv.positions.tolist() == [*range(8), 13, 14, 15, 16]
    expect(engine.forward(Batch(IDS[12:15], logits="all")), ref.forward(Batch(IDS[12:15], logits="all")), row)


def test_shifts_out_of_order_are_refused(engine: Engine) -> None:
    if not engine.capabilities.shift:
        pytest.skip("cannot shift")
    engine.forward(Batch(IDS[:10]))
    for start, stop, by in ((5, 10, -1), (0, 10, -1), (2, 4, 3)):
        with pytest.raises(ValueError):
            engine.kv.shift(start, stop, by)
    assert engine.kv.positions.tolist() == list(range(10))
    engine.kv.shift(3, 3, -9)  # no rows, nothing to do


def test_export_and_restore_continue_identically(row: Row, engine: Engine, tmp_path: Path) -> None:
    if not engine.capabilities.export:
        pytest.skip("cannot export")
    engine.forward(Batch(IDS[:25]))
    first, second = engine.kv.export(0, 10), engine.kv.export(10)
    want = engine.forward(Batch(IDS[25:], logits="all")).copy()
    other = tmp_path / "other"
    other.mkdir()
    twin = row.make(SPEC, WEIGHTS, LOAD, other)
    twin.kv.restore(first)
    assert twin.kv.positions.tolist() == list(range(10))
    twin.kv.restore(second)
    assert twin.kv.next_position == 25
    assert np.array_equal(twin.forward(Batch(IDS[25:], logits="all")), want), "a restored row is bit-identical"
    twin.close()


def test_export_with_holes(engine: Engine, row: Row) -> None:
    if not engine.capabilities.export or engine.capabilities.drop == "none":
        pytest.skip("cannot export or drop")
    engine.forward(Batch(IDS[:25]))
    engine.kv.drop([3, 4, 20])
    held = engine.kv.positions.tolist()
    blob = engine.kv.export()
    want = engine.forward(Batch(IDS[25:])).copy()
    engine.kv.clear()
    engine.kv.restore(blob)
    assert engine.kv.positions.tolist() == held
    assert engine.kv.export() == blob, "a restored row is bit-identical"
    expect(engine.forward(Batch(IDS[25:])), want, row)  # its place in memory, so the order of sums, may differ


def test_damaged_or_foreign_rows_are_refused(engine: Engine) -> None:
    if not engine.capabilities.export:
        pytest.skip("cannot export")
    engine.forward(Batch(IDS[:8]))
    blob = engine.kv.export()
    engine.kv.clear()
    rng = np.random.default_rng(0)
    for cut in (0, 3, 11, len(blob) // 2, len(blob) - 1):
        with pytest.raises(CorruptArtifact):
            engine.kv.restore(blob[:cut])
    for at in rng.integers(0, len(blob), 60):
        damaged = bytearray(blob)
        damaged[at] ^= 0x40
        with pytest.raises(CorruptArtifact):
            engine.kv.restore(bytes(damaged))
    assert engine.kv.length == 0
    engine.forward(Batch(IDS[:8]))
    with pytest.raises(CorruptArtifact):  # positions 0.. are already held
        engine.kv.restore(blob)


def test_threads_change_between_calls_or_are_refused_by_name(engine: Engine, row: Row) -> None:
    if not engine.capabilities.threads_adjustable:
        with pytest.raises(PlanError, match="threads"):
            engine.set_threads(2)
        return
    with pytest.raises(ValueError, match="at least 1"):
        engine.set_threads(0)
    want = reference().forward(Batch(IDS, logits="all"))
    for start, (threads, threads_batch) in zip(range(0, 40, 10), [(2, 1), (1, 2), (2, None), (1, 1)], strict=True):
        engine.set_threads(threads, threads_batch)
        assert engine.where()["threads"] == threads
        assert engine.where()["threads_batch"] == (threads_batch or threads)
        expect(engine.forward(Batch(IDS[start : start + 9], logits="all")), want[start : start + 9], row)
        expect(engine.forward(Batch(IDS[start + 9 : start + 10])), want[start + 9 : start + 10], row)


def test_nbytes_and_where_answer_with_facts(engine: Engine) -> None:
    ledger = engine.nbytes()
    assert engine.kv.nbytes >= SPEC.kv_row_elements() * LOAD.context  # at least 8 bits an element
    assert ledger.kv == engine.kv.nbytes
    assert ledger.weights >= SPEC.parameters() // 4
    engine.forward(Batch(IDS[:5]))
    where = engine.where()
    assert where["decode"], "names the device that decode ran on"


def test_close_is_final_and_idempotent(row: Row, tmp_path: Path) -> None:
    made = row.make(SPEC, WEIGHTS, LOAD, tmp_path)
    made.forward(Batch(IDS[:3]))
    made.close()
    made.close()
    with pytest.raises(BackendError):
        made.forward(Batch(IDS[:3]))


@pytest.mark.parametrize("name", TINY_SPECS)
def test_every_architecture_equals_the_reference(row: Row, name: str, tmp_path: Path) -> None:
    spec = TINY_SPECS[name]
    weights = random_weights(spec)
    ids = [int(i) for i in np.random.default_rng(2).integers(3, spec.vocab, 30)]
    load = LoadSpec(context=64, chunk=16, kv_type="f32")
    want = ReferenceEngine(spec, weights, load).forward(Batch(ids, logits="all"))
    try:
        made = row.make(spec, weights, load, tmp_path)
    except PlanError as refusal:  # said by name is allowed, computed wrongly is not
        pytest.skip(f"{row.name} refuses {name}: {refusal}")
    got = made.forward(Batch(ids[:21], logits="all")).copy()
    tail = [made.forward(Batch([i])).copy() for i in ids[21:]]
    made.close()
    expect(np.concatenate([got, *tail]), want, replace(row, tolerance=row.looser.get(name, row.tolerance)))
