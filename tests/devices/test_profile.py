"""The profiles in the tree load and match their machines; a broken one is refused by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from wattwise_devices.errors import CorruptArtifact
from wattwise_devices.profile import PROFILES, find_profile, load_profile, load_profiles

NAMES = (
    "jetson-orin-nano", "laptop-apple-m", "laptop-x86-u", "orange-pi-5", "phone-termux", "raspberry-pi-4",
    "raspberry-pi-5",
)  # fmt: skip
GOOD = """
title = "Board"
estimated = ["power.idle_w"]
[match]
board = ["Board"]
[power]
idle_w = 2
busy_core_w = { performance = 1.5 }
"""


def test_every_profile_of_the_tree_is_sound_and_has_its_sources() -> None:
    assert tuple(profile.name for profile in load_profiles()) == NAMES
    for profile in load_profiles():
        assert profile.idle_w and profile.busy_core_w and profile.read_bytes_per_s and profile.supply_w
        assert profile.throttle_c and profile.stop_c and profile.throttle_c <= profile.stop_c
        lines = (PROFILES / f"{profile.name}.toml").read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if line.startswith(("idle_w", "busy_core_w", "read_bytes_per_s", "throttle_c")):
                assert lines[number - 1].startswith("#"), f"{profile.name}: {line} has no source above it"


@pytest.mark.parametrize(
    ("board", "cpu", "platform", "name"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "4x Cortex-A76", "linux", "raspberry-pi-5"),
        ("Raspberry Pi 500 Rev 1.0", "4x Cortex-A76", "linux", "raspberry-pi-5"),
        ("Raspberry Pi 4 Model B Rev 1.4", "4x Cortex-A72", "linux", "raspberry-pi-4"),
        ("Raspberry Pi 400 Rev 1.0", None, "linux", "raspberry-pi-4"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "4x Cortex-A53", "linux", None),
        ("Xunlong Orange Pi 5", None, "linux", "orange-pi-5"),
        ("NVIDIA Jetson Orin Nano Developer Kit", None, "linux", "jetson-orin-nano"),
        ("NVIDIA Jetson AGX Orin", None, "linux", None),
        ("LENOVO 21C6", "12th Gen Intel(R) Core(TM) i7-1255U", "linux", "laptop-x86-u"),
        ("HP x", "AMD Ryzen 5 PRO 5650U with Radeon Graphics", "linux", "laptop-x86-u"),
        ("x", "12th Gen Intel(R) Core(TM) i9-12900K", "linux", None),
        ("MacBookAir10,1", "Apple M1", "darwin", "laptop-apple-m"),
        ("Mac14,5", "Apple M2 Max", "darwin", None),
        ("Google Pixel 8", None, "android", "phone-termux"),
        (None, None, "linux", None),
        (None, "AMD EPYC", "linux", None),
    ],
)
def test_matching(board: str | None, cpu: str | None, platform: str, name: str | None) -> None:
    found = find_profile(board, cpu, platform)
    assert (found.name if found else None) == name


def test_the_closer_description_wins(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GOOD)
    (tmp_path / "b.toml").write_text(GOOD.replace('["Board"]', '["Board X"]'))
    found = find_profile("Board X rev 2", None, "linux", tmp_path)
    assert found is not None and found.name == "b"


def test_watts_by_kind(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(GOOD)
    one = load_profile(tmp_path / "a.toml")
    assert one.watts_of("performance") == one.watts_of("unknown") == 1.5, "the only figure serves all kinds"
    (tmp_path / "a.toml").write_text(GOOD.replace("1.5 }", "1.5, efficiency = 0.5 }"))
    two = load_profile(tmp_path / "a.toml")
    assert (two.watts_of("efficiency"), two.watts_of("unknown")) == (0.5, None)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('title = "Board"', "", "title"),
        ('title = "Board"', "title = 3", "title"),
        ("idle_w = 2", "idle_w = -2", "power.idle_w"),
        ("idle_w = 2", "idle_w = nan", "power.idle_w"),
        ("idle_w = 2", 'idle_w = "2"', "power.idle_w"),
        ("idle_w = 2", "idle_w = true", "power.idle_w"),
        ("idle_w = 2\n", "", "estimated"),  # what it estimates is gone
        ("idle_w = 2", "idle_w = 2\nidle_watts = 2", "power.idle_watts"),
        ("performance = 1.5", "fast = 1.5", "power.busy_core_w.fast"),
        ("performance = 1.5", "performance = 0", "power.busy_core_w.performance"),
        ('["Board"]', '"Board"', "match.board"),
        ('["Board"]', '["(Board"]', "match.board"),
        ('board = ["Board"]', "", "match"),
        ('board = ["Board"]', 'platform = ["dos"]', "match.platform"),
        ("[power]", "[powers]", "powers"),
        ('["power.idle_w"]', '["power.nothing"]', "estimated"),
        ("[power]", "[power", "profile"),
        ("[match]", "match = 3\n[other]", "match"),
    ],
)
def test_a_broken_profile_names_file_and_key(tmp_path: Path, old: str, new: str, field: str) -> None:
    assert old in GOOD
    path = tmp_path / "broken.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(CorruptArtifact) as error:
        load_profile(path)
    assert "broken.toml" in str(error.value)
    assert error.value.field == field
