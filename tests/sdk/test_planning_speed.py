"""Speed in plans: the roofline against sums done by hand, thread counts from rates, bounds kept or refused with advice.

Rates, machine and meters are made up; nothing here depends on how fast the tests' machine is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wattwise
from support.chat_model import SPEC
from wattwise import measured_rates
from wattwise.errors import BudgetError, PlanError, PowerBudgetError
from wattwise.host_cost import HostCost
from wattwise.measured_rates import Known, RateStore
from wattwise.planning import bounds, choose, memory, nearest, power, sensors, speed, threads
from wattwise.roofline import Power, Roofline, rate_at
from wattwise_devices.limits import MemoryLimits
from wattwise_devices.machine import Machine, probe_machine
from wattwise_devices.meters import MachineState
from wattwise_devices.system import System
from wattwise_devices.topology import Core
from wattwise_runtimes.contracts import Artifact, Capability, Ledger, LoadSpec
from wattwise_runtimes.machine_speed import MachineSpeed
from wattwise_runtimes.rates import EngineRates, Pass
from wattwise_runtimes.workload import Workload

MIB = 1 << 20
GB = 1e9
STEADY = {1: 80.0, 2: 160.0, 4: 320.0}
BIG = dataclasses.replace(SPEC, context=4096, layers=10, hidden=512, heads=8, kv_heads=4, head_dim=64)
BIG_WEIGHTS, SMALL_WEIGHTS = 200_000_000, 100_000


def machine(cpus: int = 2, quota: float | None = None, kinds: str = "", root: Path = Path("/nonexistent")) -> Machine:
    """kinds: one letter a CPU: p(erformance), e(fficiency), s(ibling of the CPU before)."""
    letters = kinds or "p" * cpus
    cores = tuple(
        Core(
            cpu=i, core_id=i, package=0, kind="efficiency" if k == "e" else "performance",
            smt_sibling_of=i - 1 if k == "s" else None, max_mhz=None, capacity=None,
        )
        for i, k in enumerate(letters)
    )  # fmt: skip
    real = probe_machine(System(root=root))
    cpu = dataclasses.replace(real.cpu, cores=cores)
    return dataclasses.replace(real, cpu=cpu, usable=tuple(range(len(letters))), quota_cpus=quota, profile=None)


def engine_rates(
    count: int, *, weight_type: str = "q4_0", engine: str = "llamacpp", slower: float = 1.0
) -> EngineRates:
    """More threads read weights faster, but cost more for every layer."""
    layer_s = {1: 5e-6, 2: 25e-6, 4: 60e-6}[count]
    rate = {1: 10 * GB, 2: 18 * GB, 4: 24 * GB}[count] / slower
    return EngineRates(
        engine=engine, weight_type=weight_type, kv_type="f16", threads=count, bytes_per_weight=0.5625,
        by_footprint=((2 * MIB, 2 * rate), (32 * MIB, rate)), tiled_from=64, own_share=0.5, spread=0.02,
        passes=tuple(
            Pass(tokens=n, fixed_s=10e-6, layer_s=layer_s * (1 + n / 10), weight_s=n * 8e-12 / count * slower)
            for n in (1, 8, 512)
        ),
        attend_s=1e-10, attend_batch_s=4e-11,
        speed=steady(count),
    )  # fmt: skip


def steady(count: int, memory_bytes: int = 0) -> MachineSpeed:
    return MachineSpeed(threads=count, cache_best_gb_s=STEADY[count], cache_mean_gb_s=STEADY[count], memory_gb_s=20.0)


class MadeUpStore:
    """Knows the rates of every type, or nothing."""

    problem: str | None = None
    knows = True
    slower: dict[str, float] = {}  # noqa: RUF012 - set by tests
    asked: list[list[int]] = []  # noqa: RUF012

    def __init__(self, machine: Machine, may_measure: bool = True) -> None:
        self.may_measure = may_measure

    def known(self, engine: str, types: Any, kv_type: str, counts: Any, model_bytes: int) -> Known | None:
        if not self.knows:
            self.problem = "nobody knows"
            return None
        MadeUpStore.asked.append(list(counts))
        made = {
            (t, n): engine_rates(n, weight_type=t, engine=engine, slower=self.slower.get(t, 1.0))
            for t in types
            for n in counts
        }
        return Known(rates=made, host=HostCost(fixed_s=1e-5, per_entry_s=0.0))


class Backend:
    name = "llamacpp"

    def probe(self) -> Capability:
        return Capability(name=self.name, version="1", formats=("gguf",), kv_types=("f16", "q8_0"))

    def estimate(self, artifact: Artifact, spec: LoadSpec) -> Ledger:
        return Ledger(weights=artifact.weights_bytes, kv=256 * spec.context, compute=4096 * spec.threads)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Call it to set the scene: the model's weights and the machine."""

    def setting(weights: int = BIG_WEIGHTS, *, here: Machine | None = None) -> Path:
        path = tmp_path / "m.gguf"
        path.write_bytes(b"GGUF")
        made_up = here or machine()

        def opened(file: Path) -> Artifact:
            quant = "q8_0" if "q8" in str(file) else "q2_k" if "q2" in str(file) else "q4_0"
            return Artifact(path=Path(file), format="gguf", spec=BIG, weights_bytes=MIB, quant=quant)

        def workload(artifact: Artifact) -> Workload:
            return Workload(spec=artifact.spec, weights=((artifact.quant, weights),))

        for module in (choose, nearest):
            monkeypatch.setattr(module, "open_artifact", opened)
            monkeypatch.setattr(module, "probe_machine", lambda: made_up)
            monkeypatch.setattr(module, "RateStore", MadeUpStore)
        for module in (speed, nearest):
            monkeypatch.setattr(module, "workload_of", workload)
        monkeypatch.setattr(choose, "get_backend", lambda _: Backend())
        monkeypatch.setattr(memory, "runtime_bytes", lambda *_: 20 * MIB)
        limits = MemoryLimits(total_bytes=1 << 30, available_bytes=1 << 29, limit_bytes=None, limit_used_bytes=None)
        monkeypatch.setattr(choose, "memory_limits", lambda: limits)
        original = speed.Speed

        def speed_of(**fields: Any) -> speed.Speed:
            return original(**{"look": steady, **fields})

        monkeypatch.setattr(choose, "Speed", speed_of)
        return path

    monkeypatch.setattr(MadeUpStore, "knows", True)
    monkeypatch.setattr(MadeUpStore, "slower", {})
    monkeypatch.setattr(MadeUpStore, "asked", [])
    monkeypatch.setenv("WATTWISE_THREADS", "")
    monkeypatch.setenv("WATTWISE_MEASURE", "auto")
    return setting


def roofline(count: int = 1, weights: int = BIG_WEIGHTS, **changes: Any) -> Roofline:
    made = {"q4_0": engine_rates(count)}
    return Roofline(
        workload=Workload(spec=BIG, weights=(("q4_0", weights),)), rates=made, rates_batch=made,
        host=HostCost(fixed_s=1e-5, per_entry_s=1e-9), threads=count, threads_batch=count, **changes,
    )  # fmt: skip


def test_a_decoded_token_is_the_sum_of_its_parts() -> None:
    depth = 100
    weights_s = 0.5625 * BIG_WEIGHTS / (10 * GB)
    attention_s = 1e-10 * 4 * 8 * 64 * 10 * (depth + 1)
    by_hand = 10e-6 + 10 * 5e-6 * 1.1 + weights_s + attention_s
    assert roofline().decode_s(depth) == pytest.approx(by_hand)
    reply = roofline().reply(depth, 1)
    assert reply.tokens_per_second.value == pytest.approx(1 / (by_hand + 1e-5 + SPEC.vocab * 1e-9))


def test_a_prompt_is_read_in_chunks_each_with_its_attention_to_what_lies_before() -> None:
    line = roofline(chunk=512)
    first, second = line.prefill_s(512), line.prefill_s(512, 512)
    more_s = 4e-11 * 4 * 8 * 64 * 10 * 512 * 512
    assert second - first == pytest.approx(more_s)
    assert line.prefill_s(1024) == pytest.approx(first + second)
    head = SPEC.vocab * 512 / BIG_WEIGHTS
    weights_s = BIG_WEIGHTS * 512 * 8e-12 * (1 - head * (1 - 1 / 512))
    own_s = 4e-11 * 4 * 8 * 64 * 10 * 512 * 512 / 2
    assert first == pytest.approx(10e-6 + 10 * 5e-6 * 52.2 + weights_s + own_s)
    assert line.prefill_s(1) == pytest.approx(line.decode_s(0))
    assert line.prefill_s(100) < line.prefill_s(300) < line.prefill_s(512)


def test_rates_go_by_the_size_of_the_model() -> None:
    measured = ((2 * MIB, 40 * GB), (32 * MIB, 10 * GB))
    assert rate_at(measured, 1) == 40 * GB
    assert rate_at(measured, 8 * MIB) == pytest.approx(20 * GB), "half-way by the logarithm"
    assert rate_at(measured, 1 << 40) == 10 * GB


def test_what_is_held_already_need_not_be_read() -> None:
    assert roofline().reply(500, 10, cached=490).ttft_ms.value < 0.1 * roofline().reply(500, 10).ttft_ms.value


def test_a_slower_machine_stretches_times_and_a_noisy_one_widens_intervals() -> None:
    then = roofline(speed_now=steady(1), speed_now_batch=steady(1))
    half = dataclasses.replace(steady(1), cache_mean_gb_s=STEADY[1] / 2)
    small = roofline(weights=SMALL_WEIGHTS, speed_now=steady(1))
    slowed = roofline(weights=SMALL_WEIGHTS, speed_now=half)
    assert slowed.decode_s(1) == pytest.approx(2 * small.decode_s(1)), "in the caches only cores count"
    dry = dataclasses.replace(steady(1), memory_gb_s=10.0)
    stretched = roofline(speed_now=dry).decode_s(1) / then.decode_s(1)
    assert stretched == pytest.approx(1.5), "half of the time is memory's: 10 GB/s of 20"
    almost = dataclasses.replace(steady(1), cache_mean_gb_s=0.93 * STEADY[1])
    assert roofline(speed_now=almost).decode_s(1) == then.decode_s(1), "noise is not news"
    narrow, wide = then.reply(100).ttft_ms, roofline().reply(100).ttft_ms
    assert wide.high / wide.value > narrow.high / narrow.value, "not looked at"
    assert narrow.low < narrow.value < narrow.high


def test_threads_follow_the_rates(world: Callable[..., Path]) -> None:
    big = wattwise.plan(world(BIG_WEIGHTS))
    assert (big.threads, big.threads_batch) == (2, 2)
    small = wattwise.plan(world(SMALL_WEIGHTS))
    assert small.threads == 1, "barriers cost more than the second thread brings"
    assert any("measured rates" in reason for reason in small.reasons)
    assert dict(small.speeds)[1] > dict(small.speeds)[2]
    assert small.prediction is not None and small.roofline is not None
    assert small.to_json()["prediction"]["predicted_per_second"]["value"] == pytest.approx(
        small.prediction.tokens_per_second.value
    )
    assert "tok/s" in str(small) and json.dumps(small.to_json())


@pytest.mark.parametrize(
    ("kinds", "quota", "most", "counts"),
    [
        ("pppp", None, 4, (1, 2, 3, 4)),
        ("pppp", 1.0, 1, (1,)),
        ("pppp", 0.5, 1, (1,)),
        ("pppp", 2.5, 2, (1, 2)),
        ("pspspspseeee", None, 12, (1, 2, 4, 8, 12)),
        ("p", None, 1, (1,)),
    ],
)
def test_no_more_threads_than_cores_or_quota(kinds: str, quota: float | None, most: int, counts: tuple[int]) -> None:
    here = machine(quota=quota, kinds=kinds)
    assert threads.most_threads(here) == most
    assert threads.candidates(here) == counts
    assert threads.default_threads(here) <= most


def test_without_rates_fast_physical_cores_are_used() -> None:
    assert threads.default_threads(machine(kinds="pspseeee")) == 2
    assert threads.default_threads(machine(kinds="pppp")) == 4
    assert threads.default_threads(machine(kinds="eeee")) == 4
    assert threads.physical_cores(machine(kinds="pspseeee")) == 6


def test_a_quota_of_one_core_means_one_thread(world: Callable[..., Path]) -> None:
    plan = wattwise.plan(world(here=machine(cpus=8, quota=1.0)))
    assert (plan.threads, plan.threads_batch) == (1, 1)
    assert MadeUpStore.asked == [[1]]


def test_given_threads_are_kept(world: Callable[..., Path]) -> None:
    path = world()
    plan = wattwise.plan(path, threads=1)
    assert (plan.threads, plan.threads_batch) == (1, 1)
    plan = wattwise.plan(path, threads=2, threads_batch=1)
    assert (plan.threads, plan.threads_batch) == (2, 1)
    assert plan.ledger.compute == 4096 * 2


def test_the_onnx_session_has_one_thread_count(world: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = world()
    monkeypatch.setattr(Backend, "name", "onnx")
    plan = wattwise.plan(path)
    assert plan.threads == plan.threads_batch


def test_without_rates_nothing_is_predicted_and_the_plan_says_why(
    world: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world()
    monkeypatch.setattr(MadeUpStore, "knows", False)
    plan = wattwise.plan(path)
    assert plan.prediction is None and plan.to_json()["prediction"] is None
    assert any("nobody knows" in reason for reason in plan.reasons)
    with pytest.raises(PlanError, match="nobody knows"):
        wattwise.plan(path, budget=wattwise.Budget(tokens_per_second=1))


def test_a_wait_that_is_too_long_is_refused_with_a_prompt_that_is_not(world: Callable[..., Path]) -> None:
    path = world()
    usual = wattwise.plan(path).prediction
    assert usual is not None
    bound = usual.ttft_ms.value / 3
    with pytest.raises(BudgetError, match="first token") as caught:
        wattwise.plan(path, budget=wattwise.Budget(ttft_ms=bound))
    assert (caught.value.allowed, caught.value.needed) == (bound, pytest.approx(usual.ttft_ms.value))
    words = caught.value.would_fit
    tokens = int(next(w for w in words if "prompt" in w).split()[-2])
    assert wattwise.plan(path, budget=wattwise.Budget(ttft_ms=bound), prompt_tokens=tokens).threads
    with pytest.raises(BudgetError):
        wattwise.plan(path, budget=wattwise.Budget(ttft_ms=bound), prompt_tokens=tokens + 1)
    advised = float(next(w for w in words if "--ttft" in w).split()[1].removesuffix("ms"))
    assert wattwise.plan(path, budget=wattwise.Budget(ttft_ms=advised)).threads


def test_too_slow_is_refused_with_what_is_fast_enough(
    world: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world()
    monkeypatch.setattr(MadeUpStore, "slower", {"q2_k": 0.5, "q8_0": 2.0})
    for name in ("m-q2.gguf", "m-q8.gguf"):
        path.with_name(name).write_bytes(b"GGUF")
    usual = wattwise.plan(path).prediction
    assert usual is not None
    bound = 1.3 * usual.tokens_per_second.value
    with pytest.raises(BudgetError, match="tokens per second") as caught:
        wattwise.plan(path, budget=wattwise.Budget(tokens_per_second=bound))
    assert any("m-q2.gguf" in words for words in caught.value.would_fit)
    assert not any("m-q8.gguf" in words for words in caught.value.would_fit)
    between = 0.9 * usual.tokens_per_second.value
    with pytest.raises(BudgetError) as caught:
        wattwise.plan(path, budget=wattwise.Budget(tokens_per_second=between), threads=1)
    assert "--threads 2" in caught.value.would_fit
    assert wattwise.plan(path, budget=wattwise.Budget(tokens_per_second=between)).threads == 2


def watts(monkeypatch: pytest.MonkeyPatch, by_threads: dict[int, float]) -> None:
    known = Power(watts_by_threads=by_threads, source="a test")
    monkeypatch.setattr(speed, "power_of", lambda *_: known)
    monkeypatch.setattr(nearest, "power_of", lambda *_: known)


def test_joules_are_watts_times_time(world: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = world()
    watts(monkeypatch, {1: 4.0, 2: 6.0})
    plan = wattwise.plan(path)
    assert plan.prediction is not None and plan.prediction.j_per_token is not None
    assert plan.prediction.j_per_token.value == pytest.approx(6.0 / plan.prediction.tokens_per_second.value)
    assert "a test" in str(plan) and " J per token" in str(plan)


def test_a_bound_on_energy_takes_the_frugal_threads_or_refuses(
    world: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world()
    watts(monkeypatch, {1: 2.0, 2: 6.0})
    fast = wattwise.plan(path)
    assert fast.threads == 2 and fast.prediction is not None and fast.prediction.j_per_token is not None
    bound = 0.9 * fast.prediction.j_per_token.value
    frugal = wattwise.plan(path, budget=wattwise.Budget(energy=bound))
    assert frugal.threads == 1
    assert frugal.prediction is not None and frugal.prediction.j_per_token is not None
    assert frugal.prediction.j_per_token.value <= bound
    with pytest.raises(PowerBudgetError, match="J per token") as caught:
        wattwise.plan(path, budget=wattwise.Budget(energy=bound / 10))
    advised = caught.value.would_fit[0].split()[1]
    assert wattwise.plan(path, budget=wattwise.Budget(energy=advised)).threads == 1


def test_energy_without_known_power_is_refused(world: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = world()
    monkeypatch.setattr(speed, "power_of", lambda *_: None)
    with pytest.raises(PowerBudgetError, match="no power is known"):
        wattwise.plan(path, budget=wattwise.Budget(energy=1))


def test_bounds_that_nothing_can_watch_are_refused_by_name(world: Callable[..., Path], tmp_path: Path) -> None:
    bare = dataclasses.replace(machine(), system=System(root=tmp_path, run=lambda _: None), profile=None)
    path = world(here=bare)
    with pytest.raises(PowerBudgetError, match="6 W"):
        wattwise.plan(path, budget=wattwise.Budget(power=6))
    with pytest.raises(PlanError, match="75 °C"):
        wattwise.plan(path, budget=wattwise.Budget(temperature=75))
    with pytest.raises(PlanError, match="20 %"):
        wattwise.plan(path, budget=wattwise.Budget(battery_floor=20))


def test_a_power_bound_starts_with_threads_inside_it(
    world: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world()
    watts(monkeypatch, {1: 4.0, 2: 7.0})
    monkeypatch.setattr(bounds, "power_meters", lambda _: (["rapl"], []))
    monkeypatch.setattr(bounds, "idle_watts", lambda _: 2.0)
    assert wattwise.plan(path, budget=wattwise.Budget(power=8)).threads == 2
    assert wattwise.plan(path, budget=wattwise.Budget(power=6)).threads == 1
    with pytest.raises(PowerBudgetError, match="nothing running") as caught:
        wattwise.plan(path, budget=wattwise.Budget(power=1.5))
    assert caught.value.needed == 2.0


def test_sensors_that_exist_let_bounds_pass(world: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = world()
    state = MachineState(time_s=0.0, temperature_c=50.0, battery_percent=80.0)
    monkeypatch.setattr(bounds, "machine_state", lambda _: state)
    plan = wattwise.plan(path, budget=wattwise.Budget(temperature=75, battery_floor=20))
    assert plan.budget.is_governed and "75.0 °C" in str(plan)


def test_watts_measured_in_replies_are_remembered_and_go_before_a_profile(tmp_path: Path) -> None:
    here = machine()
    assert power.power_of(here, "llamacpp") is None
    power.remember_power(here, "llamacpp", 2, 10.0)
    power.remember_power(here, "llamacpp", 2, 20.0)
    known = power.power_of(here, "llamacpp")
    assert known is not None and known.watts(2) == pytest.approx(13.0) and known.watts(1) is None
    assert power.power_of(here, "onnx") is None


def test_a_profile_estimates_watts_by_core(tmp_path: Path) -> None:
    from wattwise_devices.profile import load_profiles

    profile = next(p for p in load_profiles() if p.idle_w is not None and len(p.busy_core_w) == 1)
    here = dataclasses.replace(machine(kinds="pppp"), profile=profile)
    known = power.power_of(here, "llamacpp")
    assert known is not None and "estimated" in known.source
    each = next(iter(profile.busy_core_w.values()))
    assert known.watts(3) == pytest.approx((profile.idle_w or 0) + 3 * each)


class Measurements:
    """Stands for the child process: counts requests, answers with made-up rates."""

    def __init__(self, spread: float = 0.02) -> None:
        self.requests: list[dict[str, Any]] = []
        self.spread = spread

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        made = [
            dataclasses.replace(engine_rates(n, weight_type=t), kv_type=request["kv_type"], spread=self.spread)
            for t in request["types"]
            for n in request["threads"]
        ]
        return {"rates": [m.to_json() for m in made], "host": {"fixed_s": 1e-5, "per_entry_s": 1e-9}}


def test_rates_are_measured_once_and_only_where_unknown(tmp_path: Path) -> None:
    measure = Measurements()
    store = RateStore(machine(), file=tmp_path / "rates.json", measure=measure)
    first = store.known("llamacpp", ["q4_0"], "f16", [1, 2], MIB)
    assert first is not None and first.for_threads(2)["q4_0"] == engine_rates(2)
    again = RateStore(machine(), file=tmp_path / "rates.json", measure=measure)
    assert again.known("llamacpp", ["q4_0"], "f16", [1], MIB) is not None
    assert len(measure.requests) == 1
    again.known("llamacpp", ["q4_0", "q8_0"], "f16", [1], MIB)
    assert measure.requests[-1]["types"] == ["q8_0"]
    again.known("llamacpp", ["q4_0"], "q8_0", [1], MIB)
    assert measure.requests[-1]["kv_type"] == "q8_0"
    again.known("llamacpp", ["q4_0"], "f16", [1], 500 * MIB)
    assert measure.requests[-1]["most_bytes"] == measured_rates.FOOTPRINTS[-1], "a larger model wants larger ones"
    other = RateStore(machine(quota=1.0), file=tmp_path / "rates.json", measure=measure)
    count = len(measure.requests)
    other.known("llamacpp", ["q4_0"], "f16", [1], MIB)
    assert len(measure.requests) == count + 1, "under a quota the machine is another one"


def test_what_was_measured_in_a_stutter_is_not_kept_for_long(tmp_path: Path) -> None:
    measure, now = Measurements(spread=0.9), [1000.0]
    store = RateStore(machine(), file=tmp_path / "rates.json", measure=measure, now_s=lambda: now[0])
    store.known("llamacpp", ["q4_0"], "f16", [1], MIB)
    now[0] += 60
    store.known("llamacpp", ["q4_0"], "f16", [1], MIB)
    assert len(measure.requests) == 1
    now[0] += 3600
    store.known("llamacpp", ["q4_0"], "f16", [1], MIB)
    assert len(measure.requests) == 2


def test_a_store_that_may_not_or_cannot_measure_says_so(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    silent = RateStore(machine(), may_measure=False, file=file, measure=Measurements())
    assert silent.known("llamacpp", ["q4_0"], "f16", [1], MIB) is None and "never" in (silent.problem or "")

    def broken(_: Any) -> Any:
        raise OSError("the child fell over")

    store = RateStore(machine(), file=file, measure=broken)
    assert store.known("llamacpp", ["q4_0"], "f16", [1], MIB) is None and "fell over" in (store.problem or "")
    good = Measurements()
    RateStore(machine(), file=file, measure=good).known("llamacpp", ["q4_0"], "f16", [1], MIB)
    damaged = json.loads(file.read_text())
    for entry in damaged.values():
        if "rates" in entry:
            entry["rates"]["passes"] = "none"
    file.write_text(json.dumps(damaged))
    store = RateStore(machine(), file=file, measure=good)
    assert store.known("llamacpp", ["q4_0"], "f16", [1], MIB) is not None and len(good.requests) == 2
    file.write_text("not json")
    assert store.known("llamacpp", ["q4_0"], "f16", [1], MIB) is not None and len(good.requests) == 3


def test_too_little_memory_to_measure_in_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = MemoryLimits(total_bytes=None, available_bytes=50 * MIB, limit_bytes=None, limit_used_bytes=None)
    monkeypatch.setattr(measured_rates, "memory_limits", lambda: limits)
    measure = Measurements()
    store = RateStore(machine(), file=tmp_path / "rates.json", measure=measure)
    assert store.known("llamacpp", ["q4_0"], "f16", [1], MIB) is None
    assert "memory" in (store.problem or "") and not measure.requests


def test_sensors_open_nothing_that_is_not_there(tmp_path: Path) -> None:
    bare = dataclasses.replace(machine(), system=System(root=tmp_path, run=lambda _: None), profile=None)
    names, reasons = sensors.power_meters(bare)
    assert names == [] and reasons
    assert sensors.idle_watts(bare) is None


def test_the_device_s_profile_is_the_last_source_before_the_default(world: Callable[..., Path], tmp_path: Path) -> None:
    from wattwise_devices.profile import load_profile

    file = tmp_path / "board.toml"
    file.write_text('title = "A board"\n[match]\nboard = ["board"]\n[settings]\ncontext = 256\nthreads = 1\n')
    path = world(here=dataclasses.replace(machine(), profile=load_profile(file)))
    plan = wattwise.plan(path)
    assert (plan.context, plan.threads) == (256, 1)
    assert plan.settings is not None and plan.settings.setting("context").source == "device profile board"
    assert wattwise.plan(path, context=512).context == 512
    file.write_text(file.read_text() + "speed = 3\n")
    path = world(here=dataclasses.replace(machine(), profile=load_profile(file)))
    with pytest.raises(PlanError, match="'speed'"):
        wattwise.plan(path)


def test_what_is_stored_can_be_listed_and_measured_afresh(tmp_path: Path) -> None:
    measure, file = Measurements(), tmp_path / "rates.json"
    store = RateStore(machine(), file=file, measure=measure)
    assert store.stored() == []
    store.known("llamacpp", ["q4_0", "q8_0"], "f16", [1, 2], MIB)
    assert {(r.weight_type, r.threads) for r in store.stored()} == {("q4_0", 1), ("q4_0", 2), ("q8_0", 1), ("q8_0", 2)}
    assert RateStore(machine(quota=1.0), file=file).stored() == [], "of another machine"
    RateStore(machine(), file=file, measure=measure, afresh=True).known("llamacpp", ["q4_0"], "f16", [1], MIB)
    assert [r["types"] for r in measure.requests] == [["q4_0", "q8_0"], ["q4_0"]]
