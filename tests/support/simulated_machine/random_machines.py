"""Random but physically possible machines for property tests: made from one seed, so a failure can be repeated."""

from __future__ import annotations

import random

from support.simulated_machine.physics import CoreKind, MachineSpec, SensorSpec, ThermalStage


def random_machine(seed: int) -> MachineSpec:
    """From a 2 W board to a 60 W laptop, one or two kinds of cores, one or two thermal stages, any sensor."""
    draw = random.Random(seed)
    size = draw.choice([0.5, 1.0, 3.0, 6.0])  # watts of one big core
    big = _kind(draw, draw.randint(1, 6), size, 1.0)
    cores = (big, _kind(draw, draw.randint(2, 4), 0.3 * size, 0.4)) if draw.random() < 0.4 else (big,)
    macs = draw.uniform(2.0, 20.0)
    gb_per_s_core = draw.uniform(4.0, 18.0)
    total = sum(kind.count for kind in cores)
    full_w = 1.5 * size * big.count
    sensor = draw.choice(["battery_power", "battery_current", "rapl", "pmic"])
    lagging = sensor.startswith("battery")
    return MachineSpec(
        name=f"random-{seed}",
        cores=cores,
        plan_threads=draw.randint(1, total),
        idle_w=draw.uniform(0.3, 1.2) * size * 2,
        elsewhere_w=0.0,
        uncore_w=draw.uniform(0.1, 0.8) * size,
        joules_per_gb=draw.uniform(0.03, 0.12) * size,
        gb_per_s=gb_per_s_core * draw.uniform(1.0, 3.5),
        gb_per_s_core=gb_per_s_core,
        gigabytes=draw.uniform(0.1, 2.0),
        gigamacs=draw.uniform(0.1, 2.0) * macs / 10,
        stages=(
            ThermalStage(k_per_w=draw.uniform(4, 18) / full_w, tau_s=draw.uniform(1.5, 5.0)),
            ThermalStage(k_per_w=draw.uniform(5, 35) / full_w, tau_s=draw.uniform(40.0, 250.0)),
        ),
        sensors=SensorSpec(
            power=sensor,
            power_every_s=draw.choice([1.0, 2.0]) if lagging else 0.2,
            power_lag_s=draw.uniform(0.2, 0.9) if lagging else 0.0,
            power_noise=draw.uniform(0.0, 0.02),
            temperature_step_c=draw.choice([0.1, 0.5, 1.0]),
            temperature_lag_s=draw.uniform(0.1, 0.8),
            temperature_noise_c=draw.uniform(0.05, 0.25),
        ),
        stall=draw.uniform(0.4, 0.9),
        trip_c=120.0,
        battery_wh=50.0 if lagging else None,
    )


def _kind(draw: random.Random, count: int, watts: float, speed: float) -> CoreKind:
    max_ghz, max_volts = draw.uniform(1.6, 4.5), draw.uniform(0.85, 1.2)
    return CoreKind(
        count=count,
        min_ghz=0.5 * max_ghz,
        max_ghz=max_ghz,
        min_volts=0.7 * max_volts,
        max_volts=max_volts,
        static_w=0.1 * watts,
        dynamic_w=0.9 * watts / (max_ghz * max_volts**2),
        macs_per_ns_ghz=speed * draw.uniform(3.0, 15.0) / max_ghz * 3,
    )
