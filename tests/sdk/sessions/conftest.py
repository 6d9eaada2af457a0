"""A folder for the tiny models of a run, and the library of the test's own home."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattwise.paths import data_dir
from wattwise.sessions.library import Library


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where model files are made once and kept."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def library(_own_home: None) -> Library:
    """As a model of this test sees it, with a cap of a gigabyte."""
    return Library(data_dir() / "sessions", 1 << 30)
