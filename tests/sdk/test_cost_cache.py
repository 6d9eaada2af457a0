"""Costs are measured once, forgotten when the model changes, and never trusted when the file is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wattwise import cost_cache
from wattwise.cost_cache import remembered
from wattwise.paths import cache_dir


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    return path


class Meter:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, int]:
        self.calls += 1
        return {"bytes": 100 + self.calls}


def test_a_cost_is_measured_once_per_question(model: Path) -> None:
    meter = Meter()
    assert [remembered(model, "q", meter)["bytes"] for _ in range(3)] == [101, 101, 101]
    assert remembered(model, "other", meter)["bytes"] == 102


def test_a_changed_model_is_measured_again(model: Path) -> None:
    meter = Meter()
    remembered(model, "q", meter)
    model.write_bytes(b"another")
    assert remembered(model, "q", meter)["bytes"] == 102
    folder = model.parent / "folder"
    folder.mkdir()
    remembered(folder, "q", meter)
    (folder / "model.onnx").write_bytes(b"x")
    assert remembered(folder, "q", meter)["bytes"] == 104


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"k": 3}', b"\xff\xfe", b'{"k": {"bytes": "many"}}'])
def test_a_damaged_cache_is_measured_anew(model: Path, damage: bytes) -> None:
    meter = Meter()
    remembered(model, "q", meter)
    (cache_dir() / "costs.json").write_bytes(damage)
    assert remembered(model, "q", meter)["bytes"] == 102


def test_without_a_place_to_write_it_still_answers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = model.parent / "file"
    blocked.touch()
    monkeypatch.setenv("WATTWISE_HOME", str(blocked / "below"))
    assert remembered(model, "q", Meter()) == {"bytes": 101}


def test_the_cache_does_not_grow_for_ever(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_cache, "_MOST_ENTRIES", 10)
    for i in range(40):
        remembered(model, f"q{i}", Meter())
    assert os.path.getsize(cache_dir() / "costs.json") < 10 * 60
