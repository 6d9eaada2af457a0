"""The recipe lies beside the packages, not in them: make it importable, and give it a little text."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred little stories from a grammar: enough order to be learnt in seconds."""
    rng = random.Random(7)
    animals, places = ("dog", "cat", "bird", "fish", "horse"), ("garden", "forest", "river", "house")
    things, feelings = ("ball", "flower", "stone", "cake"), ("happy", "tired", "proud", "glad")
    stories = []
    for number in range(400):
        animal, place, thing = rng.choice(animals), rng.choice(places), rng.choice(things)
        stories.append(
            f"Story {number}. Once there was a little {animal} who lived near the {place}. One day the {animal} "
            f"found a {thing} in the {place}. The {animal} showed the {thing} to a friend. They played with the "
            f"{thing} all day, and the {animal} was {rng.choice(feelings)} in the evening."
        )
    folder = tmp_path_factory.mktemp("text")
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    return folder
