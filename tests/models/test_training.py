"""A micro model learns, resumes to the same weights, and its export is what transformers computes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from models.configuration import ModelShape, Stage, load_config

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.reference, pytest.mark.slow]

CONFIG = Path(__file__).resolve().parents[2] / "models" / "configs" / "micro.toml"


def train(data: Path, out: Path, *options: str) -> list[dict]:
    """Run the command in this process; the rows of its log."""
    from models import train as command

    arguments = ["train", "--config", str(CONFIG), "--data", str(data), "--out", str(out), "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*arguments, "--device", "cpu", "--log-seconds", "0", *options])
        command.main()
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(text_folder, out, "--until-step", "60")
    return out


def test_the_loss_falls_far_below_that_of_guessing_by_frequency(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    ids = np.fromfile(run / "prepared" / "packed" / "text.train.ids", dtype="<u2")
    counts = np.bincount(ids)
    shares = counts[counts > 0] / counts.sum()
    unigram_nats = -float((shares * np.log(shares)).sum())
    assert rows[0]["loss"] > unigram_nats
    assert rows[-1]["loss"] < 0.6 * unigram_nats


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    run: Path, text_folder: Path, tmp_path: Path
) -> None:
    train(text_folder, tmp_path, "--until-step", "25")
    rows = train(text_folder, tmp_path, "--until-step", "60")
    assert [row["step"] for row in rows] == list(range(1, 61))
    whole = torch.load(run / "checkpoint.pt", weights_only=True)
    parts = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert whole["tokens"] == parts["tokens"]
    for name, weight in whole["model"].items():
        assert torch.equal(weight, parts["model"][name]), name


def test_a_run_of_given_minutes_comes_down_to_the_last_rate_and_ends(text_folder: Path, tmp_path: Path) -> None:
    rows = train(text_folder, tmp_path, "--minutes", "0.06")
    assert 5 < rows[-1]["step"] < rows[-1]["steps"]
    assert rows[-1]["rate"] < 0.25 < rows[len(rows) // 3]["rate"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["stage_index"] == 1


def test_a_checkpoint_of_another_shape_is_refused(run: Path, tmp_path: Path) -> None:
    import dataclasses

    from models.train import Run

    config = load_config(CONFIG)
    other = dataclasses.replace(config, shape=dataclasses.replace(config.shape, layers=3))
    with pytest.raises(ValueError, match="another shape"):
        Run(other, run / "prepared", run, device="cpu").resume()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_export_computes_what_was_trained(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from models.export import export, load_model

    export(run, tmp_path, dtype="f32", name="micro")
    reference = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("Once there was a little dog who lived near the river.", return_tensors="pt").input_ids
    model = load_model(run)
    with torch.no_grad():
        expected = reference(ids).logits[0]
        actual = model.logits(model(ids))[0]
    assert expected.std() > 1.0  # a model that says nothing would agree with anything
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)
    assert set(reference.generation_config.eos_token_id) == {
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
        tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_exported_tokenizer_and_template_give_the_ids_of_training(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from models.documents import conversation
    from models.export import export
    from models.pack import encode
    from tokenizers import Tokenizer

    export(run, tmp_path, dtype="f16", name="micro")
    document = conversation(["Hi! A little dog?", "Hello.\nIt was happy.", "Bye"], system="Be brief.")
    trained_ids, mask = encode(document, Tokenizer.from_file(str(run / "tokenizer.json")))
    messages = [{"role": turn.role, "content": turn.content} for turn in document.turns]
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = exported.apply_chat_template(messages, tokenize=False)
    assert exported(text).input_ids == trained_ids[:-1]  # training adds <|endoftext|>
    assert exported.decode([token for token, own in zip(trained_ids, mask, strict=True) if own]) == (
        "Hello.\nIt was happy.<|im_end|>"
    )


def test_the_shipped_form_has_name_and_licence_and_the_converters_tensors(run: Path, tmp_path: Path) -> None:
    from models.export import export
    from models.ship import LABELS, make

    from wattwise_convert.api import convert
    from wattwise_runtimes.formats.gguf import read_gguf

    export(run, tmp_path / "micro", dtype="f16", name="micro")
    certificate = make(tmp_path / "micro", tmp_path / "shipped.gguf", quant="q8_0")
    convert(tmp_path / "micro", tmp_path / "plain.gguf", quant="q8_0")
    shipped, plain = read_gguf(tmp_path / "shipped.gguf"), read_gguf(tmp_path / "plain.gguf")
    assert not certificate.problems
    assert certificate.logits.kl_mean < 0.01
    labels = {"general.name": "micro", **LABELS}
    assert {key: shipped.fields[key] for key in labels} == labels
    assert set(plain.fields) <= set(shipped.fields)
    assert {**plain.field_types, **dict.fromkeys(labels, "string")} == dict(shipped.field_types)
    assert list(shipped.tensors) == list(plain.tensors)
    for name in plain.tensors:
        assert shipped.tensors[name].shape == plain.tensors[name].shape
        np.testing.assert_array_equal(shipped.raw(name), plain.raw(name))


def test_training_windows_depend_on_seed_and_step_alone_and_respect_the_mask(run: Path) -> None:
    import dataclasses

    from models.batches import IGNORED, Batches

    stage = dataclasses.replace(load_config(CONFIG).stages[0], loss_on="assistant")
    batches = [Batches(run / "prepared", stage, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (batch.passes(5)[0] for batch in batches)
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert bool((first[1] == IGNORED).all())  # running text has no assistant
    plain = Batches(run / "prepared", load_config(CONFIG).stages[0], seed=1).passes(5)[0]
    assert torch.equal(plain[0][:, 1:], plain[1][:, :-1])  # each target is the next input


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    from models.optimizer import orthogonalise

    generator = torch.Generator().manual_seed(3)
    for shape in ((64, 64), (128, 32), (32, 128)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=generator)))
        # A square random matrix may hold one value so near zero that five rounds do not lift it.
        assert float(values.sort().values[1]) > 0.5 and float(values.max()) < 1.4


def test_a_stage_refuses_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match="divide each other"):
        Stage(name="s", tokens=1, tokens_per_step=100, tokens_per_pass=50, window=30, loss_on="all", mix={"a": 1.0})
    with pytest.raises(ValueError, match="no multiple of 32"):
        ModelShape(vocab=100, width=64, layers=1, heads=2, kv_heads=1, head_size=32, feed_forward=64, positions=64)
