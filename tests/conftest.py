"""Fixtures for all tests: each test gets its own home, so that no cache or setting of the user is touched."""

from __future__ import annotations

import signal
import threading

import pytest

# Shells start background jobs with Ctrl-C ignored, and children inherit that: tests that send it would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("WATTWISE_HOME", str(home))
    # Two workers on two cores: engines that spin while they wait for a second thread would crawl.
    monkeypatch.setenv("WATTWISE_THREADS", "1")
    monkeypatch.setenv("WATTWISE_MEASURE", "never")  # seconds for every new home, and figures of a busy machine
    for name in ("WATTWISE_MEMORY", "WATTWISE_ENGINE", "WATTWISE_MODEL"):
        monkeypatch.delenv(name, raising=False)
