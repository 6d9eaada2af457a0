"""`convert`: what it chooses by itself, what it refuses, what it reports, and that stopping it leaves nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from support.checkpoints import checkpoint_of, tiny_checkpoint
from support.data import DATA, needs_data
from support.specs import TINY_SPECS, random_weights
from wattwise_convert.api import convert
from wattwise_devices.errors import ConvertError, LoadError
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.formats.gguf import read_gguf

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("dtype", "quant"), [("f32", "f32"), ("bf16", "bf16"), ("f16", "f16"), ("q4_0", "f16")])
def test_gguf_keeps_the_sources_own_precision(dtype: str, quant: str, tmp_path: Path) -> None:
    spec = TINY_SPECS["llama"]
    source = checkpoint_of(spec, random_weights(spec), dtype=dtype)
    assert open_artifact(convert(source, tmp_path / "m.gguf").path).quant == quant


def test_the_destinations_name_decides_the_format(tmp_path: Path) -> None:
    source = tiny_checkpoint()
    assert convert(source, tmp_path / "m.gguf").path.is_file()
    folder = convert(source, tmp_path / "model", quant="fp32")
    assert (folder.path / "genai_config.json").is_file()
    assert open_artifact(convert(source, tmp_path / "odd", to="gguf").path).format == "gguf"
    with pytest.raises(ConvertError, match="folder"):
        convert(source, tmp_path / "other.gguf", to="onnx")
    with pytest.raises(ConvertError, match="safetensors"):
        convert(source, tmp_path / "x", to="safetensors")


@pytest.mark.parametrize("name", ["m.gguf", "folder"])
def test_what_is_there_stays_unless_overwriting_is_asked_for(name: str, tmp_path: Path) -> None:
    target = tmp_path / name
    target.write_text("mine")
    with pytest.raises(ConvertError, match="exists"):
        convert(tiny_checkpoint(), target)
    assert target.read_text() == "mine"
    convert(tiny_checkpoint(), target, overwrite=True)
    assert open_artifact(target).spec.layers == 3
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_block_size_is_onnx_only(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="block 64"):
        convert(tiny_checkpoint(), tmp_path / "m.gguf", block=64)


def test_the_source_is_never_the_target(tmp_path: Path) -> None:
    path = convert(tiny_checkpoint(), tmp_path / "m.gguf", quant="f16").path
    before = path.read_bytes()
    with pytest.raises(ConvertError, match="source"):
        convert(path, path, quant="q8_0", overwrite=True)
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    with pytest.raises(ConvertError, match="source"):
        convert(link, path, quant="q8_0", overwrite=True)
    assert path.read_bytes() == before


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no model at"):
        convert(tmp_path / "nothing", tmp_path / "m.gguf")


def test_the_result_as_json(tmp_path: Path) -> None:
    result = convert(tiny_checkpoint(), tmp_path / "m.gguf", quant="q4_0", certify=True)
    said = json.loads(json.dumps(result.to_json()))
    assert set(said) == {"path", "files", "bytes", "notes", "certificate"}
    assert said["bytes"] == result.path.stat().st_size
    assert said["files"] == [str(tmp_path / "m.gguf"), str(tmp_path / "m.gguf.certificate.json")]
    assert any("token_embd.weight" in note for note in said["notes"])


def test_an_old_certificate_goes_with_the_old_model(tmp_path: Path) -> None:
    convert(tiny_checkpoint(), tmp_path / "m.gguf", quant="q4_0", certify=True)
    convert(tiny_checkpoint(), tmp_path / "m.gguf", quant="q8_0", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("certify", [False, True])
def test_progress_goes_from_nothing_to_one(certify: bool, tmp_path: Path) -> None:
    seen: list[float] = []
    convert(tiny_checkpoint(), tmp_path / "m.gguf", quant="f32", certify=certify, on_progress=seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.5
    assert seen[-1] == pytest.approx(1.0)


class _Stop(BaseException):
    """Like KeyboardInterrupt, but nobody else raises it."""


@pytest.mark.parametrize(
    ("name", "quant"),
    [("m.gguf", "q8_0"), ("folder", "int4"), pytest.param("m.gguf", "q4_k_m", marks=pytest.mark.llama)],
)
def test_an_interruption_at_any_step_leaves_nothing(name: str, quant: str, tmp_path: Path) -> None:
    if quant == "q4_k_m":
        pytest.importorskip("llama_cpp")
    spec = dataclasses.replace(TINY_SPECS["llama"], layers=1)
    source = checkpoint_of(spec, random_weights(spec))
    for step in (1, 2, 3, 5, 8, 10):
        calls = 0

        def interrupt(share: float, step: int = step) -> None:
            nonlocal calls
            calls += 1
            if calls == step:
                raise _Stop

        with pytest.raises(_Stop):
            convert(source, tmp_path / name, quant=quant, on_progress=interrupt)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.gguf", "folder"])
def test_a_progress_function_can_stop_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="stopped"):
        convert(tiny_checkpoint(), tmp_path / name, on_progress=lambda share: share < 0.3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """A real SIGINT to a process that is in the middle of writing."""
    script = (
        "import sys, time; from support.checkpoints import tiny_checkpoint; from wattwise_convert.api import convert\n"
        "convert(tiny_checkpoint(), sys.argv[1], quant='f32', on_progress=lambda share: time.sleep(0.05))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "m.gguf")], env=environment, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()), "the conversion did not begin"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    assert list(tmp_path.iterdir()) == []


@needs_data
@pytest.mark.parametrize("name", ["stories260K-hf", "stories260K/stories260K.bin", "stories3M-hf"])
def test_real_models_end_replies_where_they_were_trained_to(name: str, tmp_path: Path) -> None:
    path = convert(DATA / "models" / name, tmp_path / "m.gguf", quant="f16").path
    spec = open_artifact(path).spec
    if name.endswith("-hf"):
        assert set(spec.eos_ids) == {1, 2}
    assert spec.bos_id == 1
    assert read_gguf(path).fields["tokenizer.ggml.model"] == "llama"


@needs_data
def test_a_real_gguf_of_others_goes_through(tmp_path: Path) -> None:
    source = DATA / "models" / "random-llama2-gguf" / "llama-2-tiny-random.gguf"
    result = convert(source, tmp_path / "m.gguf", quant="f16")
    a, b = read_gguf(source), read_gguf(result.path)
    for name, tensor in a.tensors.items():
        assert np.array_equal(a.read_rows(name), b.read_rows(name)), (name, tensor.type)
    assert b.fields["tokenizer.ggml.tokens"] == a.fields["tokenizer.ggml.tokens"]
