"""The controller: a few times a second it is told watts, degrees and progress, and answers with moves.

It works with effort: watts above idle that the program may spend (or their stand-in where nothing measures watts).
Each limit says how much effort it allows; the smallest counts. An effort is then spent on the setting that makes
the most tokens of it, and the pace takes up the rest. So threads are taken first where that costs little speed, and
everything is handed back the same way. `update` reads no clock, no file and no random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wattwise.events import BatteryFloor, ControlMoved, Event, LimitUnreachable, SensorBack, SensorLost
from wattwise.governor.controls import Controls, ControlSpace, Limits, Move, Phase, Setting, Work
from wattwise.governor.intervals import Intervals
from wattwise.governor.learning import Speeds, Watts, best_setting
from wattwise.governor.limiters import Bound, Thermal, power_bound
from wattwise.governor.noticing import Noticing
from wattwise.governor.sensing import DutyTrack, PowerTrack
from wattwise.governor.wording import moved_event
from wattwise_devices.meters.contract import MachineState, Reading

AVERAGE_S = 6.0
PACED = 0.8  # of the pace: computing less is somebody else's doing
LEAST_DUTY = 0.15  # of the time, to tell what computing costs from what waiting costs
LATE_S = 1.0  # sources that follow later than this are confused by what was before
IDLE_FORGOTTEN_S, PHASE_FORGOTTEN_S = 3.0, 2.0
DOWN, UP = 0.985, 1.02  # relative changes of effort below and above which a move is worth it
EARLY_GAIN, LATE_GAIN = 1.03, 1.08  # how much better another setting must be while settling in, and later
FULL_PACE = 0.985  # from here on sleeping is not worth it
STEP_DOWN_EVERY_S, STEP_UP_EVERY_S = 2.0, 60.0  # cores taken while the voltage is low, given back once it holds


class Governor:
    """One for one loaded model; what it has learned stays from reply to reply.

    idle_w: the device's power when it waits, where known. rates_hz: how often each power source has new values.
    """

    def __init__(
        self,
        limits: Limits,
        space: ControlSpace,
        *,
        idle_w: float | None = None,
        rates_hz: Mapping[str, float] | None = None,
    ) -> None:
        self.limits, self.space = limits, space
        self.notices = Noticing()
        self._settings: dict[Phase, Setting] = {"prefill": space.prefill[0], "decode": space.decode[0]}
        self._pace = 1.0
        self._speeds: dict[Phase, Speeds] = {
            "prefill": Speeds(space.prefill, {}, saturating=False),
            "decode": Speeds(space.decode, space.rates, saturating=True),
        }
        self._watts = Watts(space.active_w)
        self._watts.idle_w = idle_w
        self._power, self._duty, self._intervals = PowerTrack(rates_hz), DutyTrack(), Intervals()
        self._thermal = Thermal(limits.temperature_c) if limits.temperature_c is not None else None
        self._first_s: float | None = None
        self._now_s = 0.0
        self._moved_s = 0.0  # since then watts speak of the controls as they are
        self._has_computed = False
        self._phase_s = 0.0  # since then this phase lasts
        self._work = Work(phase="idle")
        self._missing: set[str] = set()
        self._unreachable: set[str] = set()
        self._most_threads: int | None = None  # under-voltage
        self._voltage_s = 0.0
        self._held_blind: float | None = None

    @property
    def controls(self) -> Controls:
        """What the program should do now."""
        decode = self._settings["decode"]
        return Controls(
            threads=decode.threads, threads_batch=self._settings["prefill"].threads, pace=self._pace,
            draft_depth=decode.draft_depth, device=decode.device,
        )  # fmt: skip

    @property
    def stopped(self) -> BatteryFloor | None:
        """Why no reply may be made now, if so."""
        floor = self.notices.floor
        return floor if floor is not None and floor.action == "stop" else None

    def set_limits(self, limits: Limits) -> None:
        """Other limits from the next update on."""
        if self._thermal is None or limits.temperature_c is None:
            self._thermal = Thermal(limits.temperature_c) if limits.temperature_c is not None else None
        else:
            self._thermal.ceiling_c = limits.temperature_c
        self.limits = limits
        self._unreachable.clear()
        self._intervals.settle(self._now_s)

    def update(self, now_s: float, readings: Sequence[Reading], state: MachineState, work: Work) -> list[Move]:
        """One round, two to four times a second while a reply is made. readings: the best source first.

        While idle, at the edges of replies, it only looks: at the idle power, and at what the machine says.
        """
        if self._first_s is None:
            self._first_s = self._moved_s = self._phase_s = now_s
        self._now_s = now_s
        events = self.notices.look(self._at_s, state, self.limits)
        events += self._take_in(readings, state)
        moves = [Move(event=event) for event in events]
        moves += self._progress(work)
        if work.phase == "idle" or self.stopped is not None:
            return moves
        bounds = self._bounds(work.phase)
        return moves + self._act(work.phase, bounds)

    @property
    def _at_s(self) -> float:
        return round(self._now_s - (self._first_s or 0.0), 3)

    def _take_in(self, readings: Sequence[Reading], state: MachineState) -> list[Event]:
        """Sensors into their histories; events for those that limits depend on and that come or go."""
        if self._power.add(self._now_s, readings):
            self._watts = Watts(self.space.active_w)  # another scope: what was learned in the old one does not compare
            self._intervals.settle(self._now_s)
        needed: dict[str, bool] = {}
        if self.limits.power_w is not None:
            needed["power"] = self._power.lost(self._now_s)
        if self._thermal is not None:
            self._thermal.track.add(self._now_s, state.temperature_c)
            needed["temperature"] = self._thermal.track.lost(self._now_s)
        events: list[Event] = []
        for sensor, lost in needed.items():
            if lost and sensor not in self._missing and self._at_s > 0:
                words = f"there is no {sensor} reading; the last safe setting is held"
                events.append(SensorLost(words, at_s=self._at_s, sensor=sensor))
                self._missing.add(sensor)
            elif not lost and sensor in self._missing:
                events.append(SensorBack(f"{sensor} can be read again", at_s=self._at_s, sensor=sensor))
                self._missing.discard(sensor)
                self._held_blind = None
                self._moved_s = self._now_s
        return events

    def _progress(self, work: Work) -> list[Move]:
        """Learn speeds, or the idle power; begin a phase with what is known about it."""
        before, self._work = self._work, work
        self._duty.add(self._now_s, work.busy_s)
        if self.notices.clock_changed and work.phase != "idle":
            self._speeds[work.phase].forget_others(self._settings[work.phase])
        if work.phase == before.phase:
            if work.phase == "idle":
                average = self._power.idle(self._phase_s, self._now_s)
                self._watts.idle_w = average if average is not None else self._watts.idle_w
            elif self._now_s > self._moved_s:  # else some of them were made in another setting
                tokens, seconds = work.tokens - before.tokens, work.computed_s - before.computed_s
                self._speeds[work.phase].add(self._settings[work.phase], tokens, seconds)
            return []
        self._change_phase(before.phase, work.phase)
        if before.phase == "idle" and self._thermal is not None:
            return self._start_gently(work.phase)
        return []

    def _change_phase(self, before: Phase, after: Phase) -> None:
        """Averages go on over short phases, or short replies one after another would never be seen."""
        lasted_s, self._phase_s = self._now_s - self._phase_s, self._now_s
        late = self._power.follow.settle_s > LATE_S
        forget_after_s = {"idle": IDLE_FORGOTTEN_S if late else float("inf"), "prefill": PHASE_FORGOTTEN_S}
        if after != "idle" and not self._has_computed:
            self._has_computed = True
            self._moved_s = self._now_s
            self._intervals.settle(self._now_s)
        if after != "idle" and lasted_s > forget_after_s.get(before, float("inf")):
            self._moved_s = self._now_s

    def _start_gently(self, phase: Phase) -> list[Move]:
        assert self._thermal is not None
        full = self._full(phase)
        effort = self._thermal.start(self._now_s, full)
        if effort >= self._applied(phase):
            return []
        line = self._thermal.track.line(2.0, self._now_s)
        bound = Bound(
            limit="temperature", effort=effort, measured=line[0] if line else 0.0, allowed=self._thermal.ceiling_c,
            unit="°C",
        )  # fmt: skip
        return self._apply(phase, effort, bound, "down", urgent=True)

    def _full(self, phase: Phase) -> float:
        """Effort of the plan's own choice."""
        return self._watts.active(self._space(phase)[0])

    def _applied(self, phase: Phase) -> float:
        return self._pace * self._watts.active(self._settings[phase])

    def _space(self, phase: Phase) -> tuple[Setting, ...]:
        settings = self.space.prefill if phase == "prefill" else self.space.decode
        most = self._most_threads
        allowed = tuple(s for s in settings if most is None or s.threads <= most)
        return allowed or (min(settings, key=lambda s: s.threads),)

    def _bounds(self, phase: Phase) -> list[Bound]:
        """What each limit allows now."""
        bounds: list[Bound] = []
        average = self._measure(phase)
        applied, full = self._applied(phase), self._full(phase)
        if self.limits.power_w is not None:
            bound = power_bound(self.limits.power_w, average or 0.0, applied, self._power.label)
            if average is None or "power" in self._missing:
                bound = replace(bound, effort=applied, urgent=False)
            bounds.append(bound)
        if self._thermal is not None:
            since = self._now_s - max(self._moved_s, self._phase_s)
            if "temperature" in self._missing:
                bounds.append(self._blind(applied))
            elif (heat := self._thermal.bound(self._now_s, since, applied, full)) is not None:
                bounds.append(heat)
        if self.notices.floor is not None:
            floor = self.notices.floor
            bounds.append(
                Bound(
                    limit="battery", effort=0.0, measured=floor.percent, allowed=floor.floor_percent, unit="%",
                    urgent=True,
                )
            )  # fmt: skip
        return bounds or [Bound(limit="power", effort=full, measured=0.0, allowed=0.0, unit="W")]

    def _blind(self, applied: float) -> Bound:
        """Without a thermometer: what was safe when it was lost, and never more."""
        assert self._thermal is not None
        if self._held_blind is None:
            self._held_blind = self._thermal.blind(self._now_s, applied)
        return Bound(
            limit="temperature", effort=min(applied, self._held_blind), measured=self._thermal.last_c,
            allowed=self._thermal.ceiling_c, unit="°C", urgent=True,
        )  # fmt: skip

    def _measure(self, phase: Phase) -> float | None:
        """Mean watts since the last move, also learned from; None while it is too early to say."""
        average = self._power.average(self._moved_s, self._now_s, AVERAGE_S)
        duty = self._duty.share(self._moved_s + self._power.follow.settle_s, self._now_s, AVERAGE_S)
        if average is None or duty is None:
            return None
        setting = self._settings[phase]
        if duty > PACED * self._pace:
            self._watts.add(setting, duty, average)
            return average
        # Pauses between replies, or a slow reader: what counts is the power once it computes at its pace again.
        if self._watts.idle_w is None or duty < LEAST_DUTY:
            return None
        self._watts.add(setting, duty, average)
        return self._watts.idle_w + self._applied(phase)

    def _act(self, phase: Phase, bounds: list[Bound]) -> list[Move]:
        moves = self._under_voltage(phase)
        if moves:
            return moves
        bound = min(bounds, key=lambda b: b.effort)
        applied = self._applied(phase)
        effort = min(bound.effort, max(self._watts.active(s) for s in self._space(phase)))
        ratio = effort / applied
        if ratio < DOWN:
            direction = "down"
        elif ratio > UP and self._has_more(phase):
            direction = "up"
        elif self._missing or self._now_s - self._moved_s < 2.0:
            return []
        else:
            direction, effort = "tuned", applied
        urgent = bound.urgent and direction != "tuned"
        return [*self._apply(phase, effort, bound, direction, urgent=urgent), *self._unreached(phase, bounds)]

    def _has_more(self, phase: Phase) -> bool:
        return self._pace < 1.0 or self._settings[phase] != self._space(phase)[0]

    def _apply(self, phase: Phase, effort: float, bound: Bound, direction: str, *, urgent: bool) -> list[Move]:
        """Spend an effort: choose setting and pace, unless it is too soon, and say what was changed."""
        current = self._settings[phase]
        gain = EARLY_GAIN if self._intervals.settling(self._now_s) else LATE_GAIN
        setting = best_setting(self._space(phase), effort, self._speeds[phase], self._watts, current, gain)
        if direction == "tuned" and (setting == current or not self._speeds[phase].tried(current)):
            return []
        pace = min(1.0, max(self.space.min_pace, effort / self._watts.active(setting)))
        pace = 1.0 if pace > FULL_PACE else round(pace, 4)
        count = (setting != current) + (pace != self._pace)
        if not self._intervals.allows(self._now_s, urgent=urgent, count=count):
            return []
        return self._change(phase, setting, pace, bound, direction)

    def _change(self, phase: Phase, setting: Setting, pace: float, bound: Bound, direction: str) -> list[Move]:
        before = self.controls
        self._settings[phase], self._pace = setting, pace
        after = self.controls
        moves: list[Move] = []
        for name in ("threads", "threads_batch", "draft_depth", "device", "pace"):
            old, new = getattr(before, name), getattr(after, name)
            if old != new:
                event: ControlMoved = moved_event(self._at_s, name, old, new, bound, direction)
                moves.append(Move(event=event, control=name, before=old, after=new))
        if moves:
            self._moved_s = self._now_s
            self._intervals.moved(self._now_s, len(moves))
        return moves

    def _under_voltage(self, phase: Phase) -> list[Move]:
        """Sleeping does not lower the peak current; fewer cores do. Given back one by one once the voltage holds."""
        threads = self._settings[phase].threads
        since = self._now_s - self._voltage_s
        bound = Bound(limit="under-voltage", effort=0.0, measured=0.0, allowed=0.0, unit="")
        if self.notices.under_voltage:
            if since < STEP_DOWN_EVERY_S and self._most_threads is not None:
                return []
            self._most_threads, self._voltage_s = max(1, threads - 1), self._now_s
            setting = self._space(phase)[0]
            return self._change(phase, setting, self._pace, bound, "down") if setting.threads < threads else []
        if self._most_threads is not None and since > STEP_UP_EVERY_S:
            self._most_threads, self._voltage_s = self._most_threads + 1, self._now_s
            if self._most_threads >= max(s.threads for s in (*self.space.decode, *self.space.prefill)):
                self._most_threads = None
            setting = self._space(phase)[0]
            return self._change(phase, setting, self._pace, bound, "up") if setting.threads > threads else []
        return []

    def _unreached(self, phase: Phase, bounds: list[Bound]) -> list[Move]:
        """A limit that even the lowest setting breaks is said once."""
        if self._pace > self.space.min_pace:
            return []
        moves: list[Move] = []
        for bound in bounds:
            over = bound.measured > bound.allowed + (1.0 if bound.unit == "°C" else 0.05 * bound.allowed)
            if bound.limit not in ("power", "temperature") or not over or bound.limit in self._unreachable:
                continue
            self._unreachable.add(bound.limit)
            words = (
                f"the {bound.limit} limit of {bound.allowed:.1f} {bound.unit} cannot be met: {bound.measured:.1f} "
                f"{bound.unit} even at a pace of {100 * self._pace:.0f} %; the rest is not this program's"
            )
            event = LimitUnreachable(
                words, at_s=self._at_s, limit=bound.limit, measured=bound.measured, allowed=bound.allowed,
                unit=bound.unit,
            )  # fmt: skip
            moves.append(Move(event=event))
        return moves
