"""A GGUF file on the ONNX engine: lowered once, in a child, found again by content; a failure is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import wattwise
from support.chat_model import SPEC, byte_tokenizer
from support.specs import random_weights
from wattwise.lowering import onnx_folder_for
from wattwise_convert import gguf
from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_devices.errors import ConvertError
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine

WEIGHTS = random_weights(SPEC)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {name: TensorSource.from_array(name, value) for name, value in WEIGHTS.items()}
    checkpoint = Checkpoint(spec=SPEC, tensors=tensors, tokenizer=byte_tokenizer(), origin=tmp_path)
    gguf.export(checkpoint, tmp_path / "tiny.gguf", quant="f32")
    return tmp_path / "tiny.gguf"


def test_a_gguf_runs_on_onnx_with_the_same_logits(model: Path) -> None:
    seen: list[float] = []
    plan = wattwise.plan(model, engine="onnx", on_progress=seen.append)
    assert seen and seen[-1] == 1.0 and seen == sorted(seen)
    assert any("lowered" in reason for reason in plan.reasons)
    with wattwise.load(model, engine="onnx") as loaded:
        got = loaded.engine.forward(Batch(list(b"hello"), logits="all"))
    want = ReferenceEngine(SPEC, WEIGHTS, LoadSpec(context=64)).forward(Batch(list(b"hello"), logits="all"))
    assert abs(got - want).max() < 1e-3 * want.std()


def test_it_is_lowered_once(model: Path) -> None:
    artifact = open_artifact(model)
    first = onnx_folder_for(artifact)
    made = (first / "genai_config.json").stat().st_mtime_ns
    copy = model.with_name("copy.gguf")
    copy.write_bytes(model.read_bytes())
    assert onnx_folder_for(open_artifact(copy)) == first
    assert (first / "genai_config.json").stat().st_mtime_ns == made


def test_a_failure_names_the_file_and_leaves_nothing(model: Path) -> None:
    artifact = open_artifact(model)
    model.write_bytes(model.read_bytes()[:5000])  # damaged after it was looked at
    with pytest.raises(ConvertError, match=r"tiny\.gguf"):
        onnx_folder_for(dataclasses.replace(artifact))
    from wattwise.paths import cache_dir

    assert list((cache_dir() / "lowered").iterdir()) == []


def test_it_can_be_stopped_and_leaves_nothing_half(model: Path) -> None:
    with pytest.raises(ConvertError, match="stopped"):
        onnx_folder_for(open_artifact(model), lambda _: False)
    from wattwise.paths import cache_dir

    left = list((cache_dir() / "lowered").iterdir())
    assert all((folder / "genai_config.json").is_file() for folder in left), "whole, if it was done before it heard"
    assert onnx_folder_for(open_artifact(model)).is_dir()
