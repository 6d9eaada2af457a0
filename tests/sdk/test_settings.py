"""Settings and budgets: one order of precedence, every source named, nothing misspelt accepted, units understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wattwise.budget import Budget
from wattwise.errors import PlanError
from wattwise.settings import KNOWN, resolve

MIB = 1 << 20


def config(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_each_source_beats_the_next(tmp_path: Path) -> None:
    file = config(tmp_path, 'memory = "3MiB"\npower = "5 W"\nthreads = 3\n')
    sources: dict[str, Any] = {
        "arguments": {"memory": "1MiB"},
        "environment": {"WATTWISE_MEMORY": "2MiB", "WATTWISE_POWER": "4W"},
        "profile": {"memory": "4MiB", "power": 9, "threads": 4, "temperature": 70},
        "profile_name": "some-board",
    }
    got = resolve(file=file, **sources)
    values = {name: (got[name], got.setting(name).source) for name in ("memory", "power", "threads", "temperature")}
    assert values == {
        "memory": (MIB, "argument"),
        "power": (4.0, "environment WATTWISE_POWER"),
        "threads": (3, str(file)),
        "temperature": (70.0, "device profile some-board"),
    }
    assert got["engine"] == "auto" and got.setting("engine").source == "default"
    del sources["arguments"]
    assert resolve(file=file, **sources)["memory"] == 2 * MIB
    del sources["environment"]
    assert resolve(file=file, environment={}, **sources)["memory"] == 3 * MIB
    assert resolve(file=tmp_path / "none.toml", environment={}, **sources)["memory"] == 4 * MIB


def test_absent_values_do_not_hide_those_below(tmp_path: Path) -> None:
    file = config(tmp_path, "context = 512\n")
    assert resolve({"context": None}, environment={"WATTWISE_CONTEXT": ""}, file=file)["context"] == 512


def test_unknown_keys_are_named_with_their_file(tmp_path: Path) -> None:
    file = config(tmp_path, 'memroy = "1GiB"\n')
    with pytest.raises(PlanError) as caught:
        resolve(environment={}, file=file)
    assert str(file) in str(caught.value) and "'memroy'" in str(caught.value) and "memory" in str(caught.value)
    with pytest.raises(PlanError, match="'speed'"):
        resolve({"speed": 3}, environment={}, file=tmp_path / "none.toml")


@pytest.mark.parametrize("text", ["memory = 'lots'", "threads = 0", "threads = true", "measure = 'often'"])
def test_values_that_cannot_be_are_refused_with_their_source(tmp_path: Path, text: str) -> None:
    file = config(tmp_path, text)
    with pytest.raises(PlanError) as caught:
        resolve(environment={}, file=file)
    assert str(file) in str(caught.value) and text.split()[0] in str(caught.value)


def test_a_file_that_is_not_toml_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="not TOML"):
        resolve(environment={}, file=config(tmp_path, "memory: 1GiB"))


def test_the_user_s_file_is_found_in_the_config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATTWISE_HOME", str(tmp_path))
    (tmp_path / "config").mkdir()
    config(tmp_path / "config", "tokens_per_second = 7")
    assert resolve(environment={})["tokens_per_second"] == 7.0


def test_the_table_has_a_row_for_every_setting(tmp_path: Path) -> None:
    got = resolve({"power": "6 W"}, environment={}, file=tmp_path / "none.toml")
    rows = {line.split()[0]: line for line in got.table().splitlines()}
    assert list(rows) == list(KNOWN)
    assert "6.0" in rows["power"] and rows["power"].endswith("argument")
    assert {e["name"] for e in got.to_json()} == set(KNOWN)
    assert got.budget() == Budget(power=6)


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("memory", "3.5GiB", 3.5 * 1024 * MIB),
        ("memory", 900_000_000, 900_000_000),
        ("power", "6 W", 6.0),
        ("power", "900mW", 0.9),
        ("power", 6, 6.0),
        ("energy", "0.5 J/token", 0.5),
        ("energy", "500 mJ/token", 0.5),
        ("energy", "2 J", 2.0),
        ("temperature", "75 C", 75.0),
        ("temperature", "75°C", 75.0),
        ("battery_floor", "20 %", 20.0),
        ("battery_floor", 0, 0.0),
        ("ttft_ms", "300 ms", 300.0),
        ("ttft_ms", "1.5 s", 1500.0),
        ("tokens_per_second", "5 tok/s", 5.0),
        ("tokens_per_second", "5", 5.0),
    ],
)
def test_budgets_understand_units(name: str, text: Any, number: float) -> None:
    assert getattr(Budget(**{name: text}), name) == pytest.approx(number)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory", "many"), ("power", "6 J"), ("power", 0), ("power", -1), ("power", True), ("power", float("nan")),
        ("energy", "3 W"), ("temperature", "75 F"), ("temperature", 400), ("battery_floor", 101), ("ttft_ms", "soon"),
        ("tokens_per_second", 0), ("tokens_per_second", "5 m/s"),
    ],
)  # fmt: skip
def test_budgets_refuse_what_is_no_such_quantity(name: str, text: Any) -> None:
    with pytest.raises(ValueError):
        Budget(**{name: text})


def test_a_budget_says_what_it_bounds() -> None:
    budget = Budget(memory="1GiB", power="6W", battery_floor=20)
    assert str(budget) == "memory 1.00 GiB, power 6.0 W, battery not below 20.0 %"
    assert budget.is_governed and not Budget(memory=1, energy=1, ttft_ms=1).is_governed
    assert str(Budget()) == "no bound"
