"""Four kinds of devices. Published figures are named; everything else is an assumption of plausible size.

Raspberry Pi 5: clock 1.5 to 2.4 GHz and throttling from 80 to 85 degrees are Raspberry Pi's documentation;
temperatures under full load without a heatsink (81 on average, peaks of 89) and with the active cooler (56) are
Phoronix's review of the board; 2.8 W idle and about 7 W under load are what owners' meters commonly show.
Memory: a third to two thirds of the peak of the parts used. Laptop and phone: assumptions throughout.
"""

from __future__ import annotations

import dataclasses

from support.simulated_machine.physics import CoreKind, MachineSpec, SensorSpec, ThermalStage

PI5_BARE = MachineSpec(
    name="pi5-bare",
    cores=(
        CoreKind(
            count=4, min_ghz=1.5, max_ghz=2.4, min_volts=0.72, max_volts=0.95,
            static_w=0.12, dynamic_w=0.346, macs_per_ns_ghz=3.9,
        ),
    ),
    plan_threads=4, idle_w=2.8, elsewhere_w=0.0, uncore_w=0.35, joules_per_gb=0.08,
    gb_per_s=10.5, gb_per_s_core=6.0, gigabytes=0.8, gigamacs=1.5,
    stages=(ThermalStage(k_per_w=2.2, tau_s=3.0), ThermalStage(k_per_w=7.1, tau_s=160.0)),
    sensors=SensorSpec(
        power="pmic", power_every_s=0.2, power_lag_s=0.0, power_noise=0.02,
        temperature_step_c=0.55, temperature_lag_s=0.3, temperature_noise_c=0.2,
    ),
    trip_c=82.0,
)  # fmt: skip

PI5_FAN = dataclasses.replace(
    PI5_BARE,
    name="pi5-fan",
    stages=(ThermalStage(k_per_w=2.2, tau_s=3.0), ThermalStage(k_per_w=2.6, tau_s=60.0)),
)

LAPTOP = MachineSpec(
    name="laptop-battery",
    cores=(
        CoreKind(
            count=8, min_ghz=1.2, max_ghz=3.4, min_volts=0.70, max_volts=1.02,
            static_w=0.35, dynamic_w=0.95, macs_per_ns_ghz=18.0,
        ),
    ),
    plan_threads=8, idle_w=5.0, elsewhere_w=4.0, uncore_w=2.5, joules_per_gb=0.10,
    gb_per_s=45.0, gb_per_s_core=18.0, gigabytes=4.0, gigamacs=7.0, single_ghz=4.4,
    stages=(ThermalStage(k_per_w=0.8, tau_s=1.5), ThermalStage(k_per_w=1.2, tau_s=80.0)),
    sensors=SensorSpec(power="battery_power", power_every_s=2.0, power_lag_s=0.8, power_noise=0.01),
    trip_c=95.0, battery_wh=50.0,
)  # fmt: skip

LAPTOP_RAPL = dataclasses.replace(
    LAPTOP,
    name="laptop-rapl",
    sensors=SensorSpec(power="rapl", power_every_s=0.001, power_lag_s=0.0, power_noise=0.005),
)

PHONE = MachineSpec(
    name="phone",
    cores=(
        CoreKind(
            count=1, min_ghz=0.8, max_ghz=3.0, min_volts=0.60, max_volts=1.00,
            static_w=0.10, dynamic_w=0.63, macs_per_ns_ghz=7.0,
        ),
        CoreKind(
            count=3, min_ghz=0.7, max_ghz=2.4, min_volts=0.58, max_volts=0.85,
            static_w=0.06, dynamic_w=0.60, macs_per_ns_ghz=6.0,
        ),
        CoreKind(
            count=4, min_ghz=0.5, max_ghz=1.8, min_volts=0.55, max_volts=0.75,
            static_w=0.02, dynamic_w=0.28, macs_per_ns_ghz=2.5,
        ),
    ),
    plan_threads=4, idle_w=1.0, elsewhere_w=0.6, uncore_w=0.4, joules_per_gb=0.05,
    gb_per_s=24.0, gb_per_s_core=11.0, gigabytes=1.0, gigamacs=1.5,
    stages=(ThermalStage(k_per_w=4.0, tau_s=2.0), ThermalStage(k_per_w=6.0, tau_s=200.0)),
    sensors=SensorSpec(power="battery_current", power_every_s=1.0, power_lag_s=0.5, power_noise=0.02),
    trip_c=80.0, battery_wh=17.0,
)  # fmt: skip

MACHINES = {m.name: m for m in (PI5_BARE, PI5_FAN, LAPTOP, LAPTOP_RAPL, PHONE)}
