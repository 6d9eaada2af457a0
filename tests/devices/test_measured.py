"""Measured rates: against a small C program, by number of threads, remembered and recalled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.machine_trees import orange_pi_5
from wattwise_devices import measured as module
from wattwise_devices.bandwidth import measuring_bytes, read_rates, thread_counts
from wattwise_devices.fingerprint import fingerprint
from wattwise_devices.machine import Machine, measure_machine, probe_machine
from wattwise_devices.measured import CACHE_NAME, recall_measured
from wattwise_devices.read_rate import ReadRate

MIB = 1 << 20
# The read half of STREAM: the sum of an array in huge pages, best of so many rounds, in bytes per second.
STREAM_C = r"""
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
int main(int count, char **words) {
    size_t bytes = (size_t)atol(words[1]) << 20;
    int64_t *data = aligned_alloc(2 << 20, bytes);
    madvise(data, bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < bytes / 8; i++) data[i] = 1;
    double best = 0;
    for (int round = 0; round < atoi(words[2]); round++) {
        int64_t lanes[8] = {0}, sum = 0;
        double began = now();
        for (size_t i = 0; i < bytes / 8; i += 8) for (int k = 0; k < 8; k++) lanes[k] += data[i + k];
        for (int k = 0; k < 8; k++) sum += lanes[k];
        double rate = bytes / (now() - began);
        if (sum != (int64_t)(bytes / 8)) return 1;
        if (rate > best) best = rate;
    }
    printf("%.0f\n", best);
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_one_thread_reads_as_fast_as_c(tmp_path: Path) -> None:
    """The best of interleaved rounds: on a quiet machine both find the same ceiling within 10 %."""
    source, program = tmp_path / "stream.c", tmp_path / "stream"
    source.write_text(STREAM_C)
    subprocess.run(["gcc", "-O3", "-march=native", "-o", program, source], check=True)
    ours = theirs = 0.0
    for _ in range(8):
        done = subprocess.run([program, "256", "3"], capture_output=True, text=True, check=True)
        theirs = max(theirs, float(done.stdout))
        ours = max(ours, read_rates((1,), total_bytes=256 * MIB, rounds=3)[1])
        if abs(ours / theirs - 1) < 0.1:
            return
    figures = f"{ours / 1e9:.1f} against {theirs / 1e9:.1f} GB/s"
    assert 0.4 < ours / theirs < 2.5, figures
    if os.getloadavg()[0] < 0.5 * (os.cpu_count() or 1):
        pytest.fail(f"{figures} on a quiet machine")
    pytest.skip(f"the machine is busy: {figures}")


def test_rates_of_every_number_of_threads() -> None:
    rates = read_rates((1, 2, 3), total_bytes=24 * MIB, rounds=2)
    assert set(rates) == {1, 2, 3} and all(1e8 < rate < 1e13 for rate in rates.values())


@pytest.mark.parametrize(
    ("usable", "counts"),
    [(0, (1,)), (1, (1,)), (2, (1, 2)), (8, tuple(range(1, 9))), (12, (1, 2, 3, 4, 6, 8, 12))],
)
def test_thread_counts(usable: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(usable) == counts


def test_many_threads_are_sampled() -> None:
    counts = thread_counts(128)
    assert counts[-1] == 128 and len(counts) < 20 and list(counts) == sorted(set(counts))


def test_memory_to_read_is_beyond_the_cache_and_within_the_limit() -> None:
    assert measuring_bytes(None, None) == 256 * MIB
    assert measuring_bytes(128 * MIB, None) == 512 * MIB
    assert measuring_bytes(1024 * MIB, None) == 1024 * MIB
    assert measuring_bytes(32 * MIB, 400 * MIB) == 50 * MIB
    assert measuring_bytes(32 * MIB, 0) == MIB


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    calls = iter(range(1, 100))
    monkeypatch.setattr(module, "read_rates", lambda counts, total_bytes: {n: n * 1e9 + next(calls) for n in counts})
    return probe_machine(orange_pi_5(tmp_path / "tree"))


def _rate(path: Path) -> ReadRate:
    return ReadRate(bytes_per_s=9e7, method="direct", read_bytes=64 * MIB)


def test_results_are_remembered_under_the_fingerprint(machine: Machine, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = measure_machine(machine, cache_folder=cache, storage_path=Path("/home/me"), rate_of=_rate)
    assert set(first.read_bytes_per_s_by_threads) == set(range(1, 9))
    assert first.fingerprint == fingerprint(machine) and first.best_read_bytes_per_s is not None
    assert recall_measured(machine, cache) == first
    again = measure_machine(machine, cache_folder=cache, storage_path=Path("/home/me"), rate_of=lambda path: None)
    assert again == first, "nothing is measured twice"
    info = machine.storage("/home/me/model.gguf", first)
    assert (info.read_bytes_per_s, info.method) == (9e7, "direct")
    assert machine.storage("/tmp/x", first).read_bytes_per_s is None, "another device has no rate"
    fresh = measure_machine(machine, cache_folder=cache, afresh=True)
    assert fresh.read_bytes_per_s_by_threads != first.read_bytes_per_s_by_threads
    assert [path.name for path in cache.iterdir()] == [CACHE_NAME], "no temporary file is left"


def test_other_limits_are_another_machine(machine: Machine, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    measure_machine(machine, cache_folder=cache)
    (tmp_path / "tree/sys/devices/system/cpu/online").write_text("0-3\n")
    smaller = probe_machine(machine.system)
    assert recall_measured(smaller, cache) is None
    found = measure_machine(smaller, cache_folder=cache)
    assert set(found.read_bytes_per_s_by_threads) == {1, 2, 3, 4}
    assert recall_measured(machine, cache) is not None, "both are kept"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace("read_bytes_per_s_by_threads", "x"),
        lambda text: text.replace('"1": ', '"1": -'),
        lambda text: text.replace('"1": ', '"0": '),
        lambda text: text.replace('"direct"', '"guessed"'),
        lambda text: text.replace("90000000.0", "NaN"),
        lambda text: json.dumps(dict.fromkeys(json.loads(text))),
    ],
)
def test_a_damaged_cache_only_costs_the_measurement(machine: Machine, tmp_path: Path, spoil: object) -> None:
    cache = tmp_path / "cache"
    measure_machine(machine, cache_folder=cache, storage_path=Path("/home"), rate_of=_rate)
    file = cache / CACHE_NAME
    text = file.read_text()
    file.write_text(spoil(text))  # type: ignore[operator]
    assert file.read_text() != text
    assert recall_measured(machine, cache) is None
    measure_machine(machine, cache_folder=cache, storage_path=Path("/home"), rate_of=_rate)
    assert recall_measured(machine, cache) is not None


def test_an_unwritable_cache_is_no_error(machine: Machine, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    assert measure_machine(machine, cache_folder=blocked / "cache").read_bytes_per_s_by_threads


def test_a_quota_bounds_the_threads(machine: Machine, tmp_path: Path) -> None:
    group = tmp_path / "tree/sys/fs/cgroup/user.slice"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("150000 100000\n")
    assert set(measure_machine(probe_machine(machine.system)).read_bytes_per_s_by_threads) == {1, 2}
