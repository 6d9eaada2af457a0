"""The governor inside a reply: rests between tokens, threads between steps, events, stops, and nothing when idle."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from support.chat_model import ScriptedEngine, byte_tokenizer, fake_plan, scripted_model
from wattwise.events import BatteryFloor, Released, SensorLost, Throttled, in_words
from wattwise.governor import ControlSpace, Governor, Limits, Setting, Work
from wattwise.governor.pacing import CREDIT_S, LEAST_REST_S, Pacer
from wattwise.governor.pilot import FIRST_PIECE, Watch
from wattwise.model import Model
from wattwise_devices.meters.contract import MachineState, Meter, Reading
from wattwise_runtimes.contracts import Batch

STEP_S = 0.01
IDLE_W, BASE_W, THREAD_W = 2.0, 1.0, 1.0


class SlowEngine(ScriptedEngine):
    """A step takes ten milliseconds of doing nothing, on up to four threads; keeps account of the watts it poses as."""

    def __init__(self, tokens: bytes, context: int = 512) -> None:
        super().__init__(tokens, context)
        self.capabilities = replace(self.capabilities, threads_adjustable=True)
        self.threads, self.threads_batch = 4, 4
        self.thread_calls: list[tuple[int, int | None]] = []
        self.joules = self.busy_s = 0.0

    def forward(self, batch: Batch, cancelled=None):  # type: ignore[no-untyped-def]
        began_s = time.monotonic()
        time.sleep(STEP_S)
        logits = super().forward(batch, cancelled)
        took_s = time.monotonic() - began_s
        self.busy_s += took_s
        self.joules += took_s * (BASE_W + THREAD_W * self.threads)
        return logits

    def set_threads(self, threads: int, threads_batch: int | None = None) -> None:
        self.thread_calls.append((threads, threads_batch))
        self.threads, self.threads_batch = threads, threads_batch or threads


class EngineMeter:
    """A counter that sees the idle machine and the engine above."""

    name, scope, rate_hz, estimated, resolution_j = "fake", "board", 100.0, False, None

    def __init__(self, engine: SlowEngine) -> None:
        self._engine, self._start_s = engine, time.monotonic()
        self.fails: Exception | None = None

    def read(self) -> Reading | None:
        if self.fails is not None:
            raise self.fails
        now_s = time.monotonic()
        joules = IDLE_W * (now_s - self._start_s) + self._engine.joules
        return Reading(source=self.name, scope="board", time_s=now_s, energy_j=joules)


class Governed:
    """A model under a governor with the sensors above; `state` may be changed while it runs."""

    def __init__(self, limits: Limits, *, tokens: bytes = b"y" * 300, adjustable: bool = True) -> None:
        self.engine = SlowEngine(tokens)
        self.meter = EngineMeter(self.engine)
        self.state = MachineState(time_s=0.0, temperature_c=50.0, battery_percent=80.0, on_battery=True)
        space = ControlSpace.of_threads(4, 4, adjustable=adjustable)
        meters: list[Meter] = [self.meter]
        self.watch = Watch(Governor(limits, space), self.engine, meters, lambda: self.state)
        self.model = Model(fake_plan(), self.engine, byte_tokenizer(), 1.0, self.watch)


def governor_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "wattwise-governor"]


class Clock:
    """Time that only moves when told, or slept."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> bool:
        self.slept.append(seconds)
        self.now_s += seconds
        return False


def test_rests_make_up_the_share_of_time_that_the_pace_says() -> None:
    clock = Clock()
    pacer = Pacer(lambda: clock.now_s)
    start_s = clock.now_s
    for _ in range(100):
        pacer.rest(lambda: 0.4, clock.sleep)
        pacer.started()
        clock.now_s += 0.03
        pacer.ended(0.4)
    pacer.rest(lambda: 0.4, clock.sleep)
    assert pacer.busy_s() == pytest.approx(3.0)
    assert clock.now_s - start_s == pytest.approx(3.0 / 0.4, abs=LEAST_REST_S)
    assert min(clock.slept) >= LEAST_REST_S * 0.99, "short rests are saved up"


def test_the_readers_time_counts_as_rest_but_is_not_hoarded() -> None:
    clock = Clock()
    pacer = Pacer(lambda: clock.now_s)
    clock.now_s += 60
    pacer.away(60)  # a reader who went for coffee
    pacer.rest(lambda: 0.5, clock.sleep)
    pacer.started()
    clock.now_s += 1.0
    pacer.ended(0.5)
    clock.now_s += 0.4  # of which a tenth of a second went into choosing the next token
    pacer.away(0.3)
    pacer.rest(lambda: 0.5, clock.sleep)
    assert pacer.busy_s() == pytest.approx(1.1)
    assert sum(clock.slept) == pytest.approx(1.1 - 0.3 - CREDIT_S)


def test_the_time_between_replies_is_rest() -> None:
    clock = Clock()
    pacer = Pacer(lambda: clock.now_s)
    pacer.started()
    clock.now_s += 1.0
    pacer.ended(0.5)
    clock.now_s += 10
    pacer.idle()
    pacer.rest(lambda: 0.5, clock.sleep)
    assert clock.slept == []
    assert pacer.busy_s() == pytest.approx(1.0)


def test_a_pace_that_is_lifted_ends_the_rest() -> None:
    clock = Clock()
    pacer = Pacer(lambda: clock.now_s)
    pacer.started()
    clock.now_s += 10
    pacer.ended(0.1)  # 90 seconds of rest are owed
    pacer.rest(lambda: 0.1 if clock.now_s < 112 else 1.0, clock.sleep)
    assert clock.now_s == pytest.approx(112, abs=0.3)


def test_busy_time_includes_what_is_under_way() -> None:
    clock = Clock()
    pacer = Pacer(lambda: clock.now_s)
    pacer.started()
    clock.now_s += 0.7
    assert pacer.busy_s() == pytest.approx(0.7)


def test_a_reply_is_kept_under_its_cap_and_says_how() -> None:
    governed = Governed(Limits(power_w=IDLE_W + 1.5))
    told: list[str] = []
    with governed.model.stream("x", temperature=0, on_event=lambda event: told.append(event.message)) as stream:
        marks = [(time.monotonic(), governed.engine.joules) for _ in stream]
    reply = stream.reply
    (began_s, began_j), (end_s, end_j) = marks[len(marks) // 2], marks[-1]
    watts = IDLE_W + (end_j - began_j) / (end_s - began_s)
    assert watts == pytest.approx(IDLE_W + 1.5, rel=0.12)
    assert governed.engine.thread_calls, "threads were taken before sleeping"
    assert governed.engine.threads < 4
    throttled = [event for event in reply.events if isinstance(event, Throttled)]
    assert {event.control for event in throttled} <= {"threads", "pace"}
    assert throttled[0].measured is not None and throttled[0].measured > throttled[0].allowed == IDLE_W + 1.5
    assert [event.message for event in reply.events] == told
    assert all(event["kind"] for event in reply.to_json()["events"])
    assert len(in_words(reply.events)) < len(reply.events), "moves are summed up for people"


def test_where_threads_are_fixed_only_the_pace_moves() -> None:
    governed = Governed(Limits(power_w=IDLE_W + 2.0), tokens=b"y" * 200, adjustable=False)
    reply = governed.model.chat("x", temperature=0)
    assert governed.engine.thread_calls == []
    assert {e.control for e in reply.events if isinstance(e, (Throttled, Released))} == {"pace"}


def test_nothing_runs_between_replies_nor_without_limits() -> None:
    governed = Governed(Limits(power_w=100.0), tokens=b"y" * 40)
    assert governor_threads() == []
    with governed.model.stream("x", temperature=0) as stream:
        next(stream)
        assert governor_threads() == ["wattwise-governor"]
    assert governor_threads() == [], "a stream that is left stops its watch"
    free = scripted_model(b"hello")
    assert free.watch is None
    with free.stream("x", temperature=0) as stream:
        next(stream)
        assert governor_threads() == []


def test_a_cancellation_ends_a_rest_at_once() -> None:
    governed = Governed(Limits(power_w=0.1))  # out of reach: the longest rests there are
    with governed.model.stream("x", temperature=0) as stream:
        threading.Timer(2.5, stream.cancel).start()
        began_s = time.monotonic()
        for _ in stream:
            pass
        assert 2.0 < time.monotonic() - began_s < 4.5
    assert stream.reply.finish_reason == "cancelled"
    assert governed.watch.governor.controls.pace < 0.2


def test_under_the_battery_floor_no_reply_is_begun() -> None:
    governed = Governed(Limits(battery_floor_percent=90.0))
    for _ in range(2):
        reply = governed.model.chat("x", temperature=0)
        assert (reply.ids, reply.finish_reason) == ([], "budget")
        assert [type(event) for event in reply.events] == [BatteryFloor], "each such reply says why"
    governed.state = replace(governed.state, battery_percent=95.0)
    assert governed.model.chat("x", temperature=0, max_tokens=3).finish_reason == "length", "charged again"


def test_the_battery_floor_ends_a_running_reply_within_two_seconds() -> None:
    governed = Governed(Limits(battery_floor_percent=20.0))
    with governed.model.stream("x", temperature=0) as stream:
        next(stream)
        governed.state = replace(governed.state, battery_percent=19.0)
        began_s = time.monotonic()
        for _ in stream:
            pass
    assert time.monotonic() - began_s < 2.0
    assert stream.reply.finish_reason == "budget"
    assert stream.reply.ids, "what there was is kept"
    assert isinstance(stream.reply.events[-1], BatteryFloor)


def test_a_prompt_is_read_in_pieces_and_gives_the_same_reply() -> None:
    free = scripted_model(b"the same")
    governed = Governed(Limits(power_w=100.0), tokens=b"the same")
    prompt = "a long prompt " * 12
    assert str(governed.model.chat(prompt, temperature=0)) == str(free.chat(prompt, temperature=0)) == "the same"
    sizes = [len(tokens) for tokens in governed.engine.forwards]
    assert sizes[0] == FIRST_PIECE
    assert sum(sizes[: sizes.index(1)]) == len(governed.model.prompt_ids(prompt))


def test_a_meter_that_breaks_ends_the_reply_rather_than_the_watch() -> None:
    governed = Governed(Limits(power_w=100.0))
    with (
        governed.model.stream("x", temperature=0) as stream,
        pytest.raises(RuntimeError, match="the meter broke"),
    ):
        next(stream)
        governed.meter.fails = RuntimeError("the meter broke")
        for _ in stream:
            pass
    governed.meter.fails = None
    assert governed.model.chat("x", temperature=0, max_tokens=2).text == "yy"


def test_a_limit_without_its_sensor_is_told() -> None:
    governed = Governed(Limits(temperature_c=60.0), tokens=b"y" * 120)
    governed.state = replace(governed.state, temperature_c=None)
    reply = governed.model.chat("x", temperature=0)
    assert [event.sensor for event in reply.events if isinstance(event, SensorLost)] == ["temperature"]


def test_the_same_readings_give_the_same_moves() -> None:
    """`update` has no clock, no file and no chance in it."""

    def play() -> list:
        space = ControlSpace(decode=tuple(Setting(threads=n) for n in (4, 3, 2, 1)), prefill=(Setting(threads=4),))
        governor = Governor(Limits(power_w=3.0, temperature_c=60.0), space)
        moves = []
        for tick in range(200):
            now_s = 0.3 * tick
            controls = governor.controls
            watts = 2.0 + controls.pace * (1.0 + controls.threads)
            reading = Reading(source="fake", scope="board", time_s=now_s, power_w=watts)
            state = MachineState(time_s=now_s, temperature_c=40.0 + 0.05 * tick)
            work = Work(phase="decode", tokens=3.0 * tick, computed_s=0.2 * tick, busy_s=0.3 * tick * controls.pace)
            moves += [move.event.to_json() for move in governor.update(now_s, [reading], state, work)]
        return moves

    first = play()
    assert first and first == play()


@pytest.mark.parametrize("verbose", [True, False])
def test_run_verbose_tells_each_move_on_stderr(
    verbose: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wattwise
    from wattwise.cli import main

    governed = Governed(Limits(power_w=IDLE_W + 1.5), tokens=b"y" * 240)
    monkeypatch.setattr(wattwise, "load", lambda *_, **__: governed.model)
    assert main(["run", "x", "--temperature", "0", *(["--verbose"] if verbose else [])]) == 0
    out, err = capsys.readouterr()
    assert out == "y" * 240 + "\n"
    moves = [line for line in err.splitlines() if "→" in line]
    if verbose:
        assert moves and all(line.startswith("[") and " s: " in line for line in moves)
        assert any("pace 100 %" in line or "threads 4" in line for line in moves)
    else:
        assert len(moves) == 1 and "controls were moved" in moves[0]
