"""What a generation asks before and after each step: may I, how fast, on how many threads.

`FREE` answers "go on" to everything and is what an ungoverned model uses. `Watch` reads the sensors in a thread of
its own while a reply is made, and only then; what it decides is carried out here, between two steps, by the thread
that computes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from wattwise.events import Event
from wattwise.governor.controls import Controls, Phase, Work
from wattwise.governor.governor import Governor
from wattwise.governor.pacing import Pacer
from wattwise.governor.sensing import usable
from wattwise_devices.meters.contract import MachineState, Meter
from wattwise_runtimes.contracts import Engine

TICK_S = 0.3
PIECE_S = 0.5  # a prompt is read in pieces of about this long, so that it can be paced
FIRST_PIECE, LEAST_PIECE = 32, 8  # tokens


class Pilot(Protocol):
    """One reply's view of the governor. A context manager around the whole reply."""

    @property
    def stopped(self) -> bool:
        """Whether the reply must end now (battery floor)."""
        ...

    def __enter__(self) -> Pilot: ...
    def __exit__(self, *_: object) -> None: ...

    def begin(self, phase: Phase) -> None:
        """Another phase begins."""
        ...

    def piece(self, tokens: int) -> int:
        """How many of these prompt tokens to read in one step."""
        ...

    def before(self, cancel: threading.Event) -> None:
        """Called before a step: rest as the pace asks, then set the threads. Returns at once when cancelled."""
        ...

    def after(self, tokens: int) -> None:
        """Called after a step of so many tokens."""
        ...

    def away(self, seconds: float) -> None:
        """The reader of the stream took so long."""
        ...


class Free:
    """No limits: nothing is watched, nothing waits."""

    stopped = False

    def __enter__(self) -> Free:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, phase: Phase) -> None:
        pass

    def piece(self, tokens: int) -> int:
        return tokens

    def before(self, cancel: threading.Event) -> None:
        pass

    def after(self, tokens: int) -> None:
        pass

    def away(self, seconds: float) -> None:
        pass


FREE = Free()


class Watch:
    """One governor over one loaded engine: makes a pilot for each reply."""

    def __init__(
        self, governor: Governor, engine: Engine, meters: Sequence[Meter], state: Callable[[], MachineState],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.governor, self.engine = governor, engine
        self._meters, self._state, self.clock_s = meters, state, clock_s
        self.pacer = Pacer(clock_s)
        self.applied: Controls = governor.controls  # what the engine was loaded with
        self.untold = self.look(Work(phase="idle"))  # the first idle time begins here

    def pilot(self, on_event: Callable[[Event], None]) -> Watched:
        """For one reply; on_event is called from the watching thread."""
        return Watched(self, on_event)

    def look(self, work: Work) -> list[Event]:
        """Read the widest meter that answers and the state, let the governor decide; what there is to tell."""
        best = next((reading for meter in self._meters if usable(reading := meter.read())), None)
        moves = self.governor.update(self.clock_s(), [best] if best else [], self._state(), work)
        return [move.event for move in moves]


class Watched:
    """The pilot of one reply under a governor."""

    def __init__(self, watch: Watch, on_event: Callable[[Event], None]) -> None:
        self._watch, self._on_event = watch, on_event
        self._progress: tuple[Phase, int, float] = ("idle", 0, 0.0)  # one object: the other thread sees all or nothing
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wattwise-governor", daemon=True)
        self._failed: Exception | None = None

    @property
    def stopped(self) -> bool:
        return self._watch.governor.stopped is not None

    def __enter__(self) -> Watched:
        watch = self._watch
        watch.pacer.idle()
        watch.untold += watch.look(Work(phase="idle", busy_s=watch.pacer.busy_s()))  # the end of the idle time
        stop = watch.governor.stopped
        if stop is not None and stop not in watch.untold:  # told with an earlier reply; this one ends by it too
            watch.untold.append(stop)
        while watch.untold:
            self._on_event(watch.untold.pop(0))
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._progress = ("idle", 0, 0.0)
        self._look()  # the next idle time begins

    def begin(self, phase: Phase) -> None:
        first = self._progress[0] == "idle"
        self._progress = (phase, 0, 0.0)
        if first:
            self._look()  # before anything is computed: a hot machine starts gently
            self._thread.start()

    def piece(self, tokens: int) -> int:
        _, done, seconds = self._progress
        if not seconds:
            return min(tokens, FIRST_PIECE)
        return min(tokens, max(LEAST_PIECE, int(PIECE_S * done / seconds)))

    def before(self, cancel: threading.Event) -> None:
        watch = self._watch
        if self._failed is not None:  # nobody watches the limits any more
            raise self._failed

        def sleep(seconds: float) -> bool:
            return self.stopped or cancel.wait(seconds)

        watch.pacer.rest(lambda: watch.governor.controls.pace, sleep)
        controls = watch.governor.controls
        if (controls.threads, controls.threads_batch) != (watch.applied.threads, watch.applied.threads_batch):
            watch.engine.set_threads(controls.threads, controls.threads_batch)
        watch.applied = controls
        watch.pacer.started()

    def after(self, tokens: int) -> None:
        took_s = self._watch.pacer.ended(self._watch.applied.pace)
        phase, done, seconds = self._progress
        self._progress = (phase, done + tokens, seconds + took_s)

    def away(self, seconds: float) -> None:
        self._watch.pacer.away(seconds)

    def _run(self) -> None:
        while not self._ended.wait(TICK_S):
            try:
                self._look()
            except Exception as error:  # raised again in the thread that computes
                self._failed = error
                return

    def _look(self) -> None:
        phase, tokens, computed_s = self._progress
        work = Work(phase=phase, tokens=tokens, computed_s=computed_s, busy_s=self._watch.pacer.busy_s())
        for event in self._watch.look(work):
            self._on_event(event)
