"""The draft learns the teacher's replies, resumes exactly, and refuses another tokenizer."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from .conftest import MicroFamily

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.reference, pytest.mark.slow, pytest.mark.xdist_group("micro_family")]


class Family:
    """The base and the draft of the micro family, as they were before distilling."""

    def __init__(self, made: MicroFamily) -> None:
        self.prepared, self.base, self.draft = made.prepared, made.out / "base", made.out / "draft"
        self.config = made.config_draft

    def distill(self, out: Path, *options: str) -> None:
        from models.distill import main

        main([
            "--config", str(self.config), "--teacher", str(self.base), "--student", str(self.draft), "--data",
            str(self.prepared), "--out", str(out), "--threads", "1", "--device", "cpu", "--log-seconds", "0", *options,
        ])  # fmt: skip


@pytest.fixture(scope="module")
def family(micro_family: MicroFamily) -> Family:
    return Family(micro_family)


@pytest.fixture(scope="module")
def distilled(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("distilled")
    family.distill(out)
    return out


@torch.no_grad()
def agreement(family: Family, run: Path) -> float:
    """How often a run's first choice is the teacher's, on what the assistant says in the held-out part."""
    from models.export import load_model
    from models.pack import open_packed

    teacher, student = load_model(family.base), load_model(run)
    hits, count = 0, 0
    for name in ("talk", "tools"):
        packed = open_packed(family.prepared, name, "held")
        for start, end in itertools.pairwise(packed.starts[:9]):
            ids = torch.from_numpy(packed.ids[start:end].astype(np.int64))[None]
            own = torch.from_numpy(packed.mask[start:end][1:].astype(bool))
            first, second = (model.logits(model(ids[:, :-1])[0]).argmax(-1) for model in (teacher, student))
            hits, count = hits + int((first == second)[own].sum()), count + int(own.sum())
    assert count > 100
    return hits / count


def test_the_students_first_choice_becomes_the_teachers(family: Family, distilled: Path) -> None:
    before, after = agreement(family, family.draft), agreement(family, distilled)
    assert after > before + 0.1
    rows = [json.loads(line) for line in (distilled / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_samples_are_prompts_of_the_training_part_with_the_teachers_own_replies(
    family: Family, distilled: Path
) -> None:
    from models.export import load_model
    from models.replies import EARLIER_TURN, REPLY, read_samples
    from models.sampling import Prompt, generate

    tokenizer = Tokenizer.from_file(str(family.base / "tokenizer.json"))
    samples = read_samples(distilled / "samples")
    assert len(samples) == 64
    training = "".join((family.prepared / "documents" / f"{n}.train.jsonl").read_text() for n in ("talk", "tools"))
    for sample in samples:
        size = int((sample.marks != REPLY).sum())
        assert (sample.marks[size:] == REPLY).all() and 1 <= len(sample.ids) - size <= 40
        text = tokenizer.decode(sample.ids[:size].tolist(), skip_special_tokens=False)
        assert text.endswith("<|im_start|>assistant\n")
        asked = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        assert json.dumps(asked)[1:-1] in training
        earlier = tokenizer.decode(sample.ids[sample.marks == EARLIER_TURN].tolist(), skip_special_tokens=False)
        assert earlier.count("<|im_end|>") == text.count("<|im_start|>assistant\n") - 1
    greedy = samples[::2][:6]
    stop = frozenset({tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")})
    prompts = [sample.ids[sample.marks != REPLY].tolist() for sample in greedy]
    replies = generate(load_model(family.base), [Prompt(ids=ids, stop=stop, limit=40) for ids in prompts])
    assert [reply.ids for reply in replies] == [s.ids[s.marks == REPLY].tolist() for s in greedy]


def test_an_interrupted_distillation_ends_with_the_weights_of_an_uninterrupted_one(
    family: Family, distilled: Path, tmp_path: Path
) -> None:
    family.distill(tmp_path, "--until-step", "9")
    (tmp_path / "samples" / "done.json").unlink()  # as if it had stopped while answering: made shards are kept
    (tmp_path / "samples" / "00001.npz").unlink()
    family.distill(tmp_path)
    whole = torch.load(distilled / "checkpoint.pt", weights_only=True)
    parts = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert whole["step"] == parts["step"] > 9
    for name, weight in whole["model"].items():
        assert torch.equal(weight, parts["model"][name]), name


def test_minutes_bring_the_schedule_to_its_end(family: Family, tmp_path: Path) -> None:
    family.distill(tmp_path, "--minutes", "0.02")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] < rows[-1]["steps"] and rows[-1]["rate"] < 0.5
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["finished"]


def test_another_tokenizer_is_refused(family: Family, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    from models.distill import main

    with pytest.raises(SystemExit, match="different tokenizers"):
        main(["--config", str(family.config), "--teacher", str(family.base), "--student", str(tmp_path),
              "--data", str(family.prepared), "--out", str(tmp_path / "out")])  # fmt: skip


def test_padding_is_not_counted(family: Family) -> None:
    from models.distill import Distillation, DistillSettings
    from models.export import load_model
    from models.replies import REPLY, Sample

    run = Distillation(DistillSettings(), load_model(family.base), load_model(family.draft), family.base, device="cpu")
    rng = np.random.default_rng(0)

    def sample(size: int) -> Sample:
        ids = rng.integers(0, 500, size).astype(np.uint16)
        return Sample(ids=ids, marks=np.where(np.arange(size) > 4, REPLY, 0).astype(np.uint8))

    short, long = sample(9), sample(40)
    with torch.no_grad():
        together, alone = run.pass_loss([short, long]), [run.pass_loss([one]) for one in (short, long)]
    assert float(together[0]) == pytest.approx(sum(float(one[0]) for one in alone), rel=2e-2)  # bf16
    assert float(together[1]) == sum(float(one[1]) for one in alone) == 4 + 35


def test_passes_hold_every_sample_once_an_epoch_and_little_padding() -> None:
    from models.distill import Passes
    from models.replies import Sample

    rng = np.random.default_rng(1)
    samples = [Sample(ids=np.full(n, i, np.uint16), marks=np.ones(n, np.uint8))
               for i, n in enumerate(rng.integers(20, 400, 700))]  # fmt: skip
    passes = Passes(samples, tokens_per_pass=2048, seed=3)
    stream = passes.from_position(0)
    seen, tokens, room, count = [], 0, 0, 0
    while len(seen) < len(samples):
        batch = next(stream)
        count += 1
        seen += [int(sample.ids[0]) for sample in batch]
        longest = max(len(sample.ids) for sample in batch)
        assert len(batch) * longest <= 2048
        tokens, room = tokens + sum(len(sample.ids) for sample in batch), room + len(batch) * longest
    assert sorted(seen) == list(range(len(samples)))
    assert tokens > 0.9 * room
    following = [[int(s.ids[0]) for s in next(stream)] for _ in range(3)]
    again = passes.from_position(count)  # resuming after the first epoch
    assert [[int(s.ids[0]) for s in next(again)] for _ in range(3)] == following


@pytest.mark.parametrize("name", ["mini_draft", "draft"])
def test_the_drafts_configs_name_sources_and_fit_their_base(name: str) -> None:
    from models.configuration import load_config
    from models.distill import load_settings
    from models.sources import SOURCES

    folder = Path(__file__).resolve().parents[2] / "models" / "configs"
    base_name = {"mini_draft": "mini", "draft": "base"}[name]
    draft, base = load_config(folder / f"{name}.toml"), load_config(folder / f"{base_name}.toml")
    settings = load_settings(folder / f"{name}.toml")
    assert (draft.shape.vocab, draft.shape.positions) == (base.shape.vocab, base.shape.positions)
    assert settings.prompt_tokens + settings.reply_tokens <= draft.shape.positions
    assert settings.tokens_per_step % settings.tokens_per_pass == 0
    assert set(settings.mix) <= {source.name for source in SOURCES}
    rates = [settings.rate_at(step) for step in range(settings.steps)]
    assert rates[0] < max(rates) > 0.9 and rates[-1] < 0.05
