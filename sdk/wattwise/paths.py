"""Where wattwise keeps its files. WATTWISE_HOME moves all of them under one folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Things that can be made again: measured costs, models lowered from others."""
    return _under_home("cache") or Path(platformdirs.user_cache_dir("wattwise", appauthor=False))


def config_dir() -> Path:
    """What a person decides: config.toml."""
    return _under_home("config") or Path(platformdirs.user_config_dir("wattwise", appauthor=False))


def data_dir() -> Path:
    """What a person would miss: saved conversations."""
    return _under_home("data") or Path(platformdirs.user_data_dir("wattwise", appauthor=False))


def _under_home(name: str) -> Path | None:
    home = os.environ.get("WATTWISE_HOME")
    return Path(home) / name if home else None
