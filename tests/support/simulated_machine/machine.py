"""A simulated machine on its own clock: told what to do, it advances and remembers the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from support.simulated_machine.physics import Load, MachineSpec, Phase, load
from support.simulated_machine.sensors import Sensors
from wattwise.governor.pacing import LEAST_REST_S
from wattwise_devices.system import System

STEP_S = 0.1
REST_S = LEAST_REST_S  # how long the program's rests are
_THROTTLE_EVERY_S, _THROTTLE_STEP, _RELEASE_BELOW_K = 0.5, 0.08, 3.0  # firmware: lowers the clock in steps
THROTTLED_NOW, CAPPED_NOW, UNDER_VOLTAGE_NOW = 1 << 2, 1 << 1, 1 << 0  # bits of vcgencmd get_throttled


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """What the program makes the machine do. pace: share of time computing; 0 threads: nothing."""

    threads: int
    pace: float = 1.0
    phase: Phase = "decode"


IDLE = Doing(threads=0)


@dataclass(slots=True)
class History:
    """The truth, once per step."""

    time_s: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)
    celsius: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)


class SimulatedMachine:
    """`system` is what the code under test looks through; `advance` moves the clock."""

    def __init__(self, spec: MachineSpec, folder: Path, *, seed: int = 0, warm: bool = True) -> None:
        self.spec, self.ambient_c, self.percent = spec, spec.ambient_c, 80.0 if spec.battery_wh else None
        self.background_w = 0.0  # what other programs draw
        self.now_s = 1000.0
        self.tokens = self.joules = self.busy_s = 0.0
        self.history = History()
        self._loads: dict[tuple[int, Phase, float, int], Load] = {}
        self._decays = [1 - math.exp(-STEP_S / stage.tau_s) for stage in spec.stages]
        self.sensors = Sensors(spec.sensors, folder, seed)
        idle_heat = spec.idle_w - spec.elsewhere_w
        self._rise = [stage.k_per_w * idle_heat if warm else 0.0 for stage in spec.stages]
        self._surroundings_c = self.ambient_c  # as the chip feels it: through the heaviest part of the device
        self._clock, self._next_firmware_s = 1.0, self.now_s
        self.system = System(root=folder, run=self.sensors.command, clock_s=lambda: self.now_s)
        self.sensors.step(self.now_s, STEP_S, self.metered_w(spec.idle_w), self.celsius, self.percent)
        self.sensors.write()

    @property
    def celsius(self) -> float:
        """The chip's true temperature."""
        return self._surroundings_c + sum(self._rise)

    def metered_w(self, watts: float) -> float:
        """The part of the whole device's power that its meter sees: RAPL does not know the screen."""
        return watts - (self.spec.elsewhere_w if self.spec.sensors.power == "rapl" else 0.0)

    def advance(self, seconds: float, doing: Doing = IDLE) -> None:
        """Let time pass, then bring the files up to date."""
        for _ in range(max(1, round(seconds / STEP_S))):
            self._step(doing)
        self.sensors.write()

    def _step(self, doing: Doing) -> None:
        spec, watts = self.spec, self.spec.idle_w + self.background_w
        if doing.threads:
            now = self._load(doing)
            rests_per_s = min(doing.pace / now.seconds_per_token, (1 - doing.pace) / REST_S)
            watts += now.active_w * min(1.0, doing.pace + rests_per_s * spec.linger_s)
            self.tokens += doing.pace * STEP_S / now.seconds_per_token
            self.busy_s += doing.pace * STEP_S
        self.now_s += STEP_S
        self.joules += watts * STEP_S
        heat = watts - spec.elsewhere_w
        self._rise = [
            rise + (stage.k_per_w * heat - rise) * decay
            for rise, stage, decay in zip(self._rise, spec.stages, self._decays, strict=True)
        ]
        self._surroundings_c += (self.ambient_c - self._surroundings_c) * min(self._decays)
        if self.percent is not None and spec.battery_wh and self.sensors.on_battery:
            self.percent = max(0.0, self.percent - 100 * watts * STEP_S / 3600 / spec.battery_wh)
        self._firmware()
        self.sensors.step(self.now_s, STEP_S, self.metered_w(watts), self.celsius, self.percent)
        for kept, value in zip(
            (self.history.time_s, self.history.watts, self.history.celsius, self.history.tokens),
            (self.now_s, watts, self.celsius, self.tokens),
            strict=True,
        ):
            kept.append(value)

    def _load(self, doing: Doing) -> Load:
        """The figures at this temperature, to the half degree (computing them is most of a step's cost)."""
        key = (doing.threads, doing.phase, self._clock, round(2 * self.celsius))
        if key not in self._loads:
            self._loads[key] = load(self.spec, doing.threads, doing.phase, self._clock, key[3] / 2)
        return self._loads[key]

    def _firmware(self) -> None:
        """Lower the clock above the trip point, raise it again below."""
        if self.now_s < self._next_firmware_s:
            return
        self._next_firmware_s = self.now_s + _THROTTLE_EVERY_S
        if self.celsius > self.spec.trip_c:
            self._clock = max(0.0, self._clock - _THROTTLE_STEP)
        elif self.celsius < self.spec.trip_c - _RELEASE_BELOW_K:
            self._clock = min(1.0, self._clock + _THROTTLE_STEP)
        slowed = THROTTLED_NOW | CAPPED_NOW
        self.sensors.throttled_bits &= ~slowed
        if self._clock < 1.0:
            self.sensors.throttled_bits |= slowed
