"""Controls besides threads and pace: draft depth and device move where the plan foretells a gain, and only there."""

from __future__ import annotations

from wattwise.governor import Controls, ControlSpace, Governor, Limits, Setting, Work
from wattwise_devices.meters.contract import MachineState, Reading

IDLE_W, TICK_S = 2.0, 0.3
DRAFTING = Setting(threads=4, draft_depth=4)
PLAIN = Setting(threads=4)
OTHER_DEVICE = Setting(threads=1, device="npu")
RATES = {DRAFTING: 12.0, PLAIN: 9.0, OTHER_DEVICE: 8.0}
WATTS = {DRAFTING: 8.0, PLAIN: 5.0, OTHER_DEVICE: 2.0}


def play(governor: Governor, seconds: float) -> list[tuple[str, object, object]]:
    """A machine that behaves exactly as the tables say."""
    moves, tokens, busy_s = [], 0.0, 0.0
    for tick in range(int(seconds / TICK_S)):
        setting = setting_of(governor.controls)
        watts = IDLE_W + governor.controls.pace * WATTS[setting]
        busy_s += governor.controls.pace * TICK_S
        tokens += governor.controls.pace * TICK_S * RATES[setting]
        now_s = 100 + tick * TICK_S
        work = Work(phase="decode", tokens=tokens, computed_s=busy_s, busy_s=busy_s)
        reading = Reading(source="fake", scope="board", time_s=now_s, power_w=watts)
        for move in governor.update(now_s, [reading], MachineState(time_s=now_s), work):
            moves.append((move.control, move.before, move.after))
    return moves


def setting_of(controls: Controls) -> Setting:
    return Setting(threads=controls.threads, draft_depth=controls.draft_depth, device=controls.device)


def watts_of(governor: Governor) -> float:
    return IDLE_W + governor.controls.pace * WATTS[setting_of(governor.controls)]


def test_drafting_is_given_up_where_it_costs_too_much() -> None:
    space = ControlSpace(decode=(DRAFTING, PLAIN), prefill=(PLAIN,), rates=RATES, active_w=WATTS)
    governor = Governor(Limits(power_w=6.5), space, idle_w=IDLE_W)
    moves = play(governor, 30)
    assert ("draft_depth", 4, 0) in moves
    assert 0.95 * 6.5 <= watts_of(governor) <= 6.5
    governor.set_limits(Limits(power_w=20.0))
    assert ("draft_depth", 0, 4) in play(governor, 30), "and taken up again"
    assert governor.controls.pace == 1.0


def test_the_device_that_makes_more_of_the_watts_is_used() -> None:
    space = ControlSpace(decode=(DRAFTING, PLAIN, OTHER_DEVICE), prefill=(PLAIN,), rates=RATES, active_w=WATTS)
    governor = Governor(Limits(power_w=4.0), space, idle_w=IDLE_W)
    moves = play(governor, 30)
    assert ("device", "cpu", "npu") in moves
    assert watts_of(governor) <= 4.1


def test_what_nobody_foretells_is_not_tried() -> None:
    space = ControlSpace(decode=(DRAFTING, PLAIN, OTHER_DEVICE), prefill=(PLAIN,))
    governor = Governor(Limits(power_w=6.0), space, idle_w=IDLE_W)
    controls = {control for control, _, _ in play(governor, 30)}
    assert controls == {"pace"}
    assert 0.95 * 6.0 <= watts_of(governor) <= 6.05
