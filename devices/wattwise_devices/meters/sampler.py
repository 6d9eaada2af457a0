"""A thread that reads meters a few times a second, and slows down where reading is dear.

Counters need it only against wrap-around and standstill (2 Hz); meters of power need it for their integral (up to
10 Hz). Times are jittered by a fifth, so that work done in step with the sampling does not fool it. A meter behind a
command costs milliseconds of processor time per look: the thread then goes down to 2 Hz, but not below.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from wattwise_devices.energy import EnergyIntegrator

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None

MOST_SHARE = 0.002  # of one core
_SLOWEST_HZ, _FASTEST_HZ = 2.0, 10.0
_log = logging.getLogger("wattwise.devices")


class Sampler:
    """`with Sampler(integrator): work()`; or start and stop. cpu_share: what it took of one core so far."""

    def __init__(self, integrator: EnergyIntegrator, *, also: Callable[[], None] | None = None) -> None:
        meter = integrator.meter
        counts = meter.resolution_j is not None
        self._fastest_hz = _SLOWEST_HZ if counts else min(_FASTEST_HZ, max(_SLOWEST_HZ, 2 * meter.rate_hz))
        self._integrator, self._also = integrator, also
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._random = random.Random()
        self._spent_s = self._ran_s = 0.0
        self.looks = 0

    @property
    def cpu_share(self) -> float:
        """Processor time over time, as a share of one core."""
        return self._spent_s / self._ran_s if self._ran_s > 0 else 0.0

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin; does nothing if it runs."""
        if self.running:
            return
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="wattwise-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End and wait for the look under way; does nothing if it does not run."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _run(self) -> None:
        began_s, wait_s = time.monotonic(), 1 / self._fastest_hz
        while not self._stopping.wait(wait_s * self._random.uniform(0.8, 1.2)):
            before_s = _cpu_s()
            try:
                self._integrator.sample()
                if self._also is not None:
                    self._also()
            except Exception:  # a defect in a meter must not end the work that it only watches
                _log.exception("reading the meter %s failed; it is no longer sampled", self._integrator.meter.name)
                return
            cost_s = _cpu_s() - before_s
            self.looks += 1
            self._spent_s += cost_s
            self._ran_s = time.monotonic() - began_s
            mean_cost_s = self._spent_s / self.looks
            wait_s = min(1 / _SLOWEST_HZ, max(1 / self._fastest_hz, mean_cost_s / MOST_SHARE))


def _cpu_s() -> float:
    """Processor time of this thread and of finished child processes."""
    children_s = 0.0
    if resource is not None:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        children_s = usage.ru_utime + usage.ru_stime
    return time.thread_time() + children_s
