"""What our own loop costs is measured over the real loop: it must run whatever that loop asks of an engine."""

from __future__ import annotations

from wattwise.host_cost import HostCost, measure_host_cost


def test_our_own_loop_is_measured_on_a_silent_engine() -> None:
    found = measure_host_cost()
    assert isinstance(found, HostCost)
    assert 1e-6 < found.token_s(4096) < 0.05
    assert found.token_s(100_000) >= found.token_s(4096)
