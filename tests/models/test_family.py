"""The one command makes a pair of models that load, chat and are measured; the figures are right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from .conftest import MicroFamily

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.reference, pytest.mark.slow, pytest.mark.xdist_group("micro_family")]


@pytest.fixture(scope="module")
def made(micro_family: MicroFamily) -> MicroFamily:
    return micro_family


def engines() -> list[str]:
    from models.dialogues import installed_engines

    return installed_engines()


def test_the_shipped_pair_loads_on_every_engine_and_shares_its_tokens(made: MicroFamily) -> None:
    from models.dialogues import open_model

    family = json.loads((made.shipped / "family.json").read_text())
    assert [row["name"] for row in family.values()] == ["micro", "micro-draft"]
    for engine in engines():
        with open_model(made.shipped / "model.gguf", engine) as base:
            with open_model(made.shipped / "draft.gguf", engine) as draft:
                assert base.tokenizer.vocabulary.tokens == draft.tokenizer.vocabulary.tokens
            reply = base.chat("Hi! I have a dog and it is number 3 in our street.", temperature=0, max_tokens=40)
            assert reply.text.startswith("How nice"), reply.text
    for file in ("model.gguf", "draft.gguf"):
        certificate = json.loads((made.shipped / f"{file}.certificate.json").read_text())
        assert certificate["written_files"][0]["name"] == file


def test_a_second_run_does_nothing_again(made: MicroFamily, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {path: path.stat().st_mtime_ns for path in made.out.rglob("*") if path.is_file() and path.name != "CARD.md"}
    made.run()
    assert "begins" not in capsys.readouterr().out
    for path, before in kept.items():
        assert path.stat().st_mtime_ns == before, path


def test_the_card_holds_every_figure_source_and_reply(made: MicroFamily) -> None:
    card = (made.shipped / "CARD.md").read_text()
    bits = json.loads((made.evaluation / "bits" / f"base-q8_0-{engines()[0]}.json").read_text())
    for name, row in bits["held_out"].items():
        assert f"| {name} | {row['tokens']:,.0f} |" in card and f"{row['bits_per_byte']:.3f}" in card
    for word in ("micro-draft", "CC BY-SA 4.0", "the test's tools", "## Limits", "its first 2,000 bytes"):
        assert word in card
    acceptance = made.read("acceptance")["engines"][engines()[0]]["total"]
    assert f"{acceptance['accepted']:.1%}" in card
    transcripts = made.read("transcripts")
    rows = [*transcripts["openings"], *transcripts["requests"]]
    assert [row["seed"] for row in rows] == list(range(5)) * 9
    assert card.count("- seed ") == len(rows)
    assert "wattwise has no constraints" in card


def test_bits_per_byte_are_those_of_torch(made: MicroFamily) -> None:
    from models.data import read_documents
    from models.export import load_model
    from models.pack import open_packed

    model, packed = load_model(made.out / "base"), open_packed(made.prepared, "talk", "held")
    bounds, nats, read = [*packed.starts.tolist(), len(packed.ids)], 0.0, 0
    size = 0
    with torch.no_grad():
        for number, document in enumerate(read_documents(made.prepared, "talk", "held")):
            ids = torch.from_numpy(packed.ids[bounds[number] : bounds[number + 1]].astype(np.int64))
            logits = model.logits(model(ids[None, :-1])[0]).float()
            nats += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
            read += len(ids) - 1
            # The first token, <|im_start|>, is given; <|endoftext|> is predicted.
            size += len((document.rendered() + "<|endoftext|>").encode()) - len("<|im_start|>")
    expected = nats / math.log(2) / size
    from models.dialogues import open_model
    from models.evaluate import bits_per_byte

    for engine in engines():
        with open_model(made.shipped / "model.gguf", engine) as loaded:
            found = bits_per_byte(loaded, packed, max_tokens=10**6)
        assert found["tokens"] == read
        assert found["bits_per_byte"] == pytest.approx(expected, rel=1e-2)
        assert 0 < found["assistant_bits_per_byte"] < found["bits_per_byte"]  # the replies are nearly fixed


def test_acceptance_is_that_of_drafting_token_by_token(made: MicroFamily) -> None:
    """Against both models run greedily, one token at a time, with a draft of four that is really proposed."""
    from models.acceptance import acceptance
    from models.dialogues import open_model, room_in, spread

    engine = engines()[0]
    with (
        open_model(made.shipped / "model.gguf", engine) as target,
        open_model(made.shipped / "draft.gguf", engine) as draft,
    ):
        questions = spread(made.prepared, ["talk", "tools"], 8, room_in(target, 32))
        assert {question.source for question in questions} == {"talk", "tools"}
        total, sources = acceptance(target, draft, questions, reply_tokens=32)
        tokens = rounds = accepted = 0
        for question in questions:
            prompt = target.prompt_ids(question.messages, tools=question.tools or None)
            reply = plain_greedy(target, prompt, 32)
            tokens += len(reply)
            at = 0
            while at < len(reply):
                proposed = plain_greedy(draft, [*prompt, *reply[:at]], 4, stop=False)
                truth = reply[at : at + 4]
                run = next((n for n, (a, b) in enumerate(zip(proposed, truth, strict=False)) if a != b), len(truth))
                rounds, accepted, at = rounds + 1, accepted + run, at + run + 1
    assert total.tokens == tokens == sum(tally.tokens for tally in sources.values())
    assert (total.rounds[4], total.run_tokens[4]) == (rounds, accepted)
    assert 0 < total.accepted <= tokens  # two such small models may well agree on everything


def plain_greedy(model, prompt: list[int], limit: int, *, stop: bool = True) -> list[int]:
    from wattwise_runtimes.contracts import Batch

    model.forget()
    new, reply = prompt, []
    while len(reply) < limit:
        reply.append(int(model.engine.forward(Batch(new))[-1].argmax()))
        if stop and reply[-1] in model.tokenizer.eog_ids:
            break
        new = reply[-1:]
    model.forget()
    return reply


def test_prompts_of_dialogues_are_the_ids_of_training(made: MicroFamily) -> None:
    """Calls in earlier turns too: the marks are tokens again when the conversation is sent back."""
    from models.data import read_documents
    from models.dialogues import last_turn, messages_of, open_model
    from models.pack import encode
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(made.prepared / "tokenizer.json"))
    with open_model(made.shipped / "model.gguf", engines()[0]) as model:
        for source in ("talk", "tools"):
            document = read_documents(made.prepared, source, "held")[0]
            turn = last_turn(document)
            assert turn is not None
            ids, mask = encode(document, tokenizer)
            begins = [at for at in range(1, len(ids)) if mask[at] and not mask[at - 1]]
            prompt = model.prompt_ids(messages_of(document, turn), tools=list(document.tools) or None)
            assert prompt == ids[: begins[-1]]


def test_a_plain_text_folder_is_enough(text_folder: Path, tmp_path: Path) -> None:
    from models.family import main

    config = Path(__file__).resolve().parents[2] / "models" / "configs" / "micro.toml"
    main([
        "--config-base", str(config), "--config-draft", str(config), "--data", str(text_folder), "--out",
        str(tmp_path), "--minutes", "0.04", "--threads", "1",
    ])  # fmt: skip
    card = (tmp_path / "shipped" / "CARD.md").read_text()
    assert "Not measured: the data has no held-out conversation" in card
    assert "Not measured: the data has no source 'tools'" in card
