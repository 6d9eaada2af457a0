"""The planner's decisions, on a backend whose costs are simple arithmetic: what fits, what is refused, what advice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import wattwise
from support.chat_model import SPEC
from wattwise import planning
from wattwise.errors import BackendUnavailable, LoadError, MemoryBudgetError, PlanError
from wattwise.planning import choose, memory
from wattwise_devices.limits import MemoryLimits
from wattwise_runtimes.contracts import Artifact, Capability, Ledger, LoadSpec

MIB = 1 << 20
WEIGHTS, RUNTIME = 40 * MIB, 20 * MIB
KV_BYTES = {"f16": 4096, "q8_0": 2176}  # per token


class ArithmeticBackend:
    """40 MiB of weights, 4 KiB of f16 KV per token, 8 KiB of compute per token of the chunk."""

    name = "arithmetic"

    def probe(self) -> Capability:
        return Capability(name=self.name, version="1", formats=("gguf",), kv_types=("f16", "q8_0"))

    def warm_up(self) -> int:
        return 0

    longest = 1 << 20

    def estimate(self, artifact: Artifact, spec: LoadSpec) -> Ledger:
        if spec.context > self.longest:
            raise PlanError(f"only right up to {self.longest} tokens")
        return Ledger(weights=WEIGHTS, kv=KV_BYTES[spec.kv_type] * spec.context, compute=8192 * spec.chunk)

    def load(self, *_: Any) -> Any:
        raise AssertionError("the planner must not load")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A model file, one backend, a known runtime cost and a machine with 200 MiB."""
    import dataclasses

    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    spec = dataclasses.replace(SPEC, context=8192)
    artifact = Artifact(path=path, format="gguf", spec=spec, weights_bytes=WEIGHTS, quant="q4_0")

    def get(name: str) -> ArithmeticBackend:
        if name != "arithmetic":
            raise BackendUnavailable(f"no {name}")
        return ArithmeticBackend()

    monkeypatch.setattr(choose, "open_artifact", lambda _: artifact)
    monkeypatch.setattr(choose, "get_backend", get)
    monkeypatch.setattr(memory, "runtime_bytes", lambda *_: RUNTIME)
    limits = MemoryLimits(total_bytes=1 << 30, available_bytes=200 * MIB, limit_bytes=None, limit_used_bytes=None)
    monkeypatch.setattr(choose, "memory_limits", lambda: limits)
    return path


def make(world: Path, memory: int | str | None = None, **wants: Any) -> planning.Plan:
    budget = wattwise.Budget(memory=memory) if memory is not None else None
    return wattwise.plan(world, budget=budget, engine="arithmetic", **wants)


def test_an_ample_budget_gets_the_default_of_everything(world: Path) -> None:
    plan = make(world, "1GiB")
    assert (plan.context, plan.kv_type, plan.chunk) == (4096, "f16", 512)
    assert plan.ledger.total == WEIGHTS + RUNTIME + 4096 * 4096 + 512 * 8192
    assert plan.budget_source == "your budget"


def test_without_a_budget_the_machine_sets_it(world: Path) -> None:
    assert make(world).budget_bytes == 200 * MIB
    assert make(world).budget_source == "available on this machine"


def test_frugality_goes_chunk_then_kv_then_context(world: Path) -> None:
    base = WEIGHTS + RUNTIME
    assert make(world, planning.with_headroom(base + 4096 * 4096 + 128 * 8192)).chunk == 128
    least = planning.with_headroom(base + 4096 * 2176 + 32 * 8192)
    q8 = make(world, least)
    assert (q8.context, q8.kv_type, q8.chunk) == (4096, "q8_0", 32)
    shorter = make(world, least - 1)
    assert shorter.context == 2048
    assert any("longer context" in reason for reason in shorter.reasons)


@pytest.mark.parametrize("mib", range(60, 90, 2))
def test_every_accepted_plan_fits_and_every_refusal_helps(world: Path, mib: int) -> None:
    try:
        plan = make(world, mib * MIB)
    except MemoryBudgetError as error:
        assert error.allowed == mib * MIB and error.needed is not None and error.needed > error.allowed
        assert error.would_fit
        least = max(int(w.split("--memory ")[1].split("MiB")[0]) for w in error.would_fit if "--memory" in w)
        assert make(world, least * MIB).ledger.total <= least * MIB, "the advice works"
    else:
        assert plan.ledger.total < mib * MIB


def test_a_refused_context_names_the_one_that_fits(world: Path) -> None:
    memory = WEIGHTS + RUNTIME + 10 * MIB
    with pytest.raises(MemoryBudgetError, match="Fits: context") as caught:
        make(world, memory, context=8192)
    assert "8192" in str(caught.value)
    offered = int(caught.value.would_fit[0].split()[1])
    assert make(world, memory, context=offered).context == offered


def test_requests_that_clash_are_named(world: Path) -> None:
    for wants in ({"context": 9000}, {"context": 0}, {"kv_type": "q4_0"}, {"threads": 0}, {"chunk": 0}):
        with pytest.raises(PlanError):
            make(world, **wants)
    with pytest.raises(BackendUnavailable):
        wattwise.plan(world, engine="nonesuch")
    with pytest.raises(LoadError, match="no model"):
        wattwise.plan(world.with_name("absent.gguf"))


def test_a_plan_reads_as_words_and_as_json(world: Path) -> None:
    plan = make(world, "1GiB", context=1024, threads=3)
    data = json.loads(json.dumps(plan.to_json()))
    assert data["ledger"]["total_bytes"] == plan.ledger.total
    assert (data["context"], data["threads"], data["fits"]) == (1024, 3, True)
    words = str(plan)
    for word in ("arithmetic", "1024", "40.0 MiB", "1.00 GiB", "q4_0"):
        assert word in words


def test_a_context_that_the_engine_cannot_run_is_passed_over_and_said(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ArithmeticBackend, "longest", 1500)
    plan = make(world, "1GiB")
    assert plan.context == 1024
    assert any("only right up to 1500" in reason for reason in plan.reasons)
    with pytest.raises(PlanError, match="1500"):
        make(world, "1GiB", context=2048)
    monkeypatch.setattr(ArithmeticBackend, "longest", 8)
    world.write_bytes(b"GGUF, another file: costs are remembered by file")
    with pytest.raises(PlanError, match="up to 8"):
        make(world, "1GiB")
