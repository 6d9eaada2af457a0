"""Policies on real engines: every combination of engine, KV type, policy, prefix reuse and edit, and real tensors.

The yardstick of a combination is the numpy reference engine that drops the same rows; how alike the choices of rows are
is a test of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines_under_test import ENGINES
from formulas import FORMULAS, best

from support.data import DATA, needs_data
from support.specs import TINY_SPECS, random_weights
from wattwise.kv.eviction import Eviction, parse_eviction
from wattwise.kv.policy import get_policy, policy_names
from wattwise.kv.selection import choose
from wattwise.kv.sight import AttentionBook, positions_by_head
from wattwise.prefix import NO_TOKENS, HeldPrefix
from wattwise_devices.errors import PlanError
from wattwise_runtimes.contracts import Batch, Engine, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine

# Heads of 64, so that quantised caches have whole blocks; two layers that share keys among two heads.
SPEC = dataclasses.replace(
    TINY_SPECS["llama"], layers=2, hidden=128, heads=2, kv_heads=1, head_dim=64, ffn=128, context=512,
    rope=dataclasses.replace(TINY_SPECS["llama"].rope, dims=64),  # type: ignore[type-var]
)  # fmt: skip
WEIGHTS = random_weights(SPEC)
IDS = [int(i) for i in np.random.default_rng(5).integers(3, SPEC.vocab, 260)]
ROWS = {row.name: row for row in ENGINES}
KV_TYPES = {"reference": ("f32",), "llamacpp": ("f32", "f16", "q8_0", "q4_0"), "onnx": ("f32", "int8", "int4")}
LEVELS = {"reference": ("token", "head"), "llamacpp": ("token",), "onnx": ("token", "head")}
# Largest difference of a log-probability from the reference, in standard deviations: what the KV type costs here, and
# in four bits what turning the keys of closed holes costs on top.
TOLERANCE = {"f32": 1e-3, "f16": 5e-3, "q8_0": 0.04, "int8": 0.08, "q4_0": 1.0, "int4": 1.0}


def combinations() -> Iterator[tuple[str, str, str]]:
    for engine, kv_types in KV_TYPES.items():
        for kv_type in kv_types:
            for policy in policy_names():
                for level in LEVELS[engine]:
                    if get_policy(policy).positions == "keep" or level == "token":
                        yield engine, kv_type, f"{policy}:48:{level}"
            yield engine, kv_type, "keydiff:48:close:token"


def eviction_of(text: str, level: str = "head") -> Eviction:
    return parse_eviction(text).resolve(context=512, row_bytes=1, level=level)  # type: ignore[arg-type]


def make(engine: str, kv_type: str, eviction: Eviction, folder: Path) -> Engine:
    row = ROWS[engine]
    if row.needs:
        pytest.importorskip(row.needs)
    load = LoadSpec(
        context=eviction.rows, chunk=eviction.block, kv_type=kv_type, attention_scores=eviction.needs_attention
    )
    return row.make(SPEC, WEIGHTS, load, folder)


def read(engine: Engine, held: HeldPrefix, ids: list[int]) -> np.ndarray:
    """Log-probabilities after the last token."""
    logits = np.zeros((1, SPEC.vocab), np.float32)
    done = 0
    while done < len(ids):
        piece = held.piece(len(ids) - done)
        held.make_room(piece, NO_TOKENS)
        logits = engine.forward(Batch(ids[done : done + piece]))
        held.extend(ids[done : done + piece])
        done += piece
    shifted = logits[0].astype(np.float64) - logits[0].max()
    return shifted - np.log(np.exp(shifted).sum())


def story(engine: Engine, eviction: Eviction) -> list[np.ndarray]:
    """Read much more than the budget, answer, go on with a longer prompt, then with one edited near its end."""
    held = HeldPrefix(engine, eviction)
    seen = [read(engine, held, IDS[:200])]
    for token in IDS[200:210]:
        seen.append(read(engine, held, [token]))
    longer = [*IDS[:210], *IDS[210:240]]
    assert held.rewind_to(longer) == 210, "a longer prompt costs what is new"
    seen.append(read(engine, held, longer[210:]))
    edited = [*IDS[:236], 7, 8, 9, 10]
    start = held.rewind_to(edited)
    assert 230 <= start <= 236, "the newest rows are held"
    seen.append(read(engine, held, edited[start:]))
    assert engine.kv.length <= eviction.rows
    return seen


@pytest.mark.parametrize(("engine", "kv_type", "policy"), combinations())
def test_a_combination_does_what_the_reference_does(
    engine: str, kv_type: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eviction = eviction_of(policy)
    try:
        made = make(engine, kv_type, eviction, tmp_path)
    except PlanError as refusal:  # by name, and only this: quantised values need flash attention, scores forbid it
        assert engine == "llamacpp" and kv_type in ("q8_0", "q4_0") and eviction.needs_attention, refusal
        assert refusal.clash is not None
        return
    kept: list[np.ndarray] = []

    def recorded(*args: Any, **options: Any) -> np.ndarray:
        kept.append(choose(*args, **options))
        return kept[-1]

    monkeypatch.setattr("wattwise.prefix.choose", recorded)
    got = story(made, eviction)
    made.close()
    assert len(kept) > 3, "nothing was evicted, so nothing was tested"
    replayed = iter(kept)
    monkeypatch.setattr("wattwise.prefix.choose", lambda *args, **options: next(replayed))
    load = LoadSpec(context=eviction.rows, chunk=eviction.block, kv_type="f32")
    want = story(ReferenceEngine(SPEC, WEIGHTS, load), eviction)
    worst = max(float(np.abs(a - b).max() / b.std()) for a, b in zip(got, want, strict=True))
    assert worst < TOLERANCE[kv_type], "eviction on this engine is not what it is on the reference"


# The share of rows that the reference would keep too after one eviction; codes of few bits blur the scores.
ALIKE = {"f32": 1.0, "f16": 0.97, "q8_0": 0.9, "int8": 0.9, "q4_0": 0.7, "int4": 0.7}


@pytest.mark.parametrize(("engine", "kv_type", "policy"), [c for c in combinations() if c[0] != "reference"])
def test_an_engine_keeps_the_rows_that_the_reference_keeps(
    engine: str, kv_type: str, policy: str, tmp_path: Path
) -> None:
    eviction = eviction_of(policy)
    try:
        made = make(engine, kv_type, eviction, tmp_path)
    except PlanError:
        pytest.skip("refused by name, see above")
    ref = ReferenceEngine(SPEC, WEIGHTS, LoadSpec(context=eviction.rows, chunk=eviction.block, kv_type="f32"))
    for e in (made, ref):
        held = HeldPrefix(e, eviction)
        read(e, held, IDS[: eviction.rows])
        assert held.make_room(1, NO_TOKENS) is not None
    got, want = (positions_by_head(e.kv.view(), SPEC.kv_heads) for e in (made, ref))
    shared = [np.isin(a, b).mean() for a, b in zip(got.reshape(-1, 48), want.reshape(-1, 48), strict=True)]
    assert min(shared) >= ALIKE[kv_type]
    made.close()


# ---------------------------------------------------------------- real tensors of a real model


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    pytest.importorskip("onnxruntime")
    from wattwise_convert.onnx import export
    from wattwise_convert.sources import open_checkpoint
    from wattwise_runtimes.artifact import open_artifact
    from wattwise_runtimes.engines.onnx import BACKEND

    folder = tmp_path_factory.mktemp("real") / "m"
    export(open_checkpoint(DATA / "models" / "stories3M-hf"), folder, quant="fp32")
    load = LoadSpec(context=256, chunk=32, kv_type="f32", attention_scores=True)
    engine = BACKEND.load(open_artifact(folder), load)
    yield engine
    engine.close()


@needs_data
@pytest.mark.parametrize("name", [*FORMULAS])
def test_rows_by_head_on_onnx_are_those_of_the_papers_formula_on_real_tensors(
    real: Engine, name: str, tokenizer_ids: Callable[[int], list[int]]
) -> None:
    spec, policy, ids = real.spec, get_policy(name), tokenizer_ids(192)
    real.kv.clear()
    book = AttentionBook(spec.layers, spec.heads, spec.kv_heads, policy.queries)
    for start in range(0, len(ids), 32):
        real.forward(Batch(ids[start : start + 32]))
        book.add(real.kv.view(), 32)
    view = real.kv.view()
    sight = book.sight(view, positions_by_head(view, spec.kv_heads))
    kept = choose(policy, sight, 96, protected=NO_TOKENS, recent=1, by_head=True)
    assert kept.shape == (spec.layers, spec.kv_heads, 96)
    for layer in range(spec.layers):
        for head in range(spec.kv_heads):
            assert kept[layer, head].tolist() == best(FORMULAS[name](sight, layer, head), 96)
    heads = {tuple(kept[layer, head]) for layer in range(spec.layers) for head in range(spec.kv_heads)}
    assert len(heads) > 1, "heads differ, or the test says nothing"


@pytest.fixture(scope="module")
def tokenizer_ids() -> Callable[[int], list[int]]:
    from wattwise_runtimes.text.sources import load_tokenizer

    tokenizer = load_tokenizer(DATA / "models" / "stories3M-hf")
    text = (DATA / "text" / "tinystories_sample.txt").read_text(encoding="utf-8")[:4000]
    return lambda count: tokenizer.encode(text, bos=True)[:count]
