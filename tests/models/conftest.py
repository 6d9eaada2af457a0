"""The recipe lies beside the packages, not in them: make it importable, and give it micro data and configs."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from models.documents import Document, Turn, conversation, tool_call  # noqa: E402


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


_TABLE_TOOL = {
    "type": "function",
    "function": {
        "name": "book_table",
        "description": "Book a table",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "people": {"type": "integer"},
                "when": {"type": "string", "enum": ["noon", "evening"]},
            },
            "required": ["city"],
        },
    },
}
MICRO_SHAPE = {
    "vocab": 512, "width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_size": 32, "feed_forward": 128,
    "positions": 256,
}  # fmt: skip
MICRO_MIX = {"talk": 0.6, "tools": 0.4}


def _talk(path: Path) -> Iterator[Document]:
    rng = random.Random(3)
    for number in range(700):
        animal, name = rng.choice(("dog", "cat", "horse")), rng.choice(("Ada", "Bob", "Cleo", "Dan"))
        asked = [
            f"Hi! I have a {animal} and it is number {number} in our street.",
            f"How nice! Its name, {animal} lover?",
        ]
        if number % 2:
            asked += [f"{name} is its name.", f"{name} is a good name for a {animal}."]
        yield conversation(asked, system="Be kind." if number % 5 == 0 else "")


def _tools(path: Path) -> Iterator[Document]:
    rng = random.Random(4)
    for number in range(600):
        city, people = rng.choice(("Rome", "Oslo", "Lima")), 2 + number % 90
        call = tool_call("book_table", {"city": city, "people": people})
        turns = (("user", f"A table in {city} for {people}, order {number}."), ("assistant", call))
        after = (("tool", '{"status": "ok"}'), ("assistant", f"Your table in {city} is booked."))
        yield Document(turns=tuple(Turn(role=r, content=c) for r, c in (*turns, *after)), tools=(_TABLE_TOOL,))


@pytest.fixture(scope="session")
def micro_prepared(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations, calls of a tool, and text, prepared as the recipe does it."""
    pytest.importorskip("tokenizers")
    from models.sources import Source, read_plain_text

    from models import data, pack, tokenizer

    out = tmp_path_factory.mktemp("prepared")
    (out / "documents").mkdir()
    made = [("talk", _talk), ("tools", _tools), ("text", read_plain_text)]
    sources = [Source(name=n, file="", licence="Apache-2.0", credit=f"the test's {n}", read=read) for n, read in made]
    rows = [data.prepare_source(source, text_folder, out / "documents") for source in sources]
    (out / "documents" / "sources.json").write_text(json.dumps(rows), encoding="utf-8")
    trained = tokenizer.train_tokenizer(out, vocab=MICRO_SHAPE["vocab"])
    (out / "tokenizer.json").write_text(trained.to_str(), encoding="utf-8")
    pack.pack(out, trained, out)
    return out


def micro_config(path: Path, *, name: str, tokens: int, **changes: int) -> Path:
    """A config file of a micro model, with a `[distill]` table of a few seconds."""
    shape = {**MICRO_SHAPE, **changes}
    mix = ", ".join(f"{source} = {share}" for source, share in MICRO_MIX.items())
    lines = [f'name = "{name}"', "seed = 20", "[model]", *(f"{key} = {value}" for key, value in shape.items())]
    lines += [
        "[stage.chat]", f"tokens = {tokens}", "tokens_per_step = 1024", "tokens_per_pass = 1024", "window = 128",
        'loss_on = "all"', "warmup_steps = 5", "rate_to = 0.05", f"mix = {{ {mix} }}",
        "[distill]", "prompts = 64", "shard_prompts = 32", "prompt_tokens = 150", "reply_tokens = 40",
        "tokens = 120_000", "tokens_per_step = 2048", "tokens_per_pass = 1024",
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class MicroFamily:
    """A base and a draft of a second's training, and everything that the one command makes of them."""

    def __init__(self, folder: Path, prepared: Path, text: Path) -> None:
        self.out, self.prepared = folder / "run", prepared
        self.shipped, self.evaluation = self.out / "shipped", self.out / "evaluation"
        self.config_base = micro_config(folder / "base.toml", name="micro", tokens=150_000)
        self.config_draft = micro_config(folder / "draft.toml", name="micro-draft", tokens=8_000, layers=1)
        self._words = [
            "--config-base", str(self.config_base), "--config-draft", str(self.config_draft), "--data", str(prepared),
            "--out", str(self.out), "--text", str(text), "--minutes", "0.15", "--threads", "1",
        ]  # fmt: skip

    def run(self) -> None:
        from models.family import main

        main(self._words)

    def read(self, name: str) -> dict[str, Any]:
        """What an evaluation step wrote."""
        return json.loads((self.evaluation / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def micro_family(micro_prepared: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MicroFamily:
    pytest.importorskip("torch")
    family = MicroFamily(tmp_path_factory.mktemp("family"), micro_prepared, text_folder / "stories.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WATTWISE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("WATTWISE_THREADS", "1")
        family.run()
    return family
