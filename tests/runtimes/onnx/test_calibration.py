"""Scales are measured once per model, remembered, and made anew when the file is not what was written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.data import DATA, needs_data
from support.onnx_folders import write_onnx_folder
from support.specs import TINY_SPECS, random_weights
from wattwise_devices.errors import LoadError
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.onnx import BACKEND
from wattwise_runtimes.engines.onnx import session as ort_session
from wattwise_runtimes.engines.onnx.calibration import TOKENS
from wattwise_runtimes.engines.onnx.codec import channel_scales
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.spec import ModelSpec

SPEC = TINY_SPECS["llama"]
LOAD = LoadSpec(context=64, chunk=16, kv_type="int8")


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many sessions were opened since the last call."""
    opened: list[int] = []
    plain = ort_session.open_session

    def counting(*args: object, **options: object) -> object:
        opened.append(1)
        return plain(*args, **options)  # type: ignore[arg-type]

    def since() -> int:
        count = len(opened)
        opened.clear()
        return count

    monkeypatch.setattr(ort_session, "open_session", counting)
    return since


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WATTWISE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def folder(tmp_path: Path, spec: ModelSpec = SPEC) -> Path:
    return write_onnx_folder(tmp_path / "m", spec, random_weights(spec))


def loaded_scales(path: Path, load: LoadSpec = LOAD) -> np.ndarray:
    engine = BACKEND.load(open_artifact(path), load)
    found = engine.kv.codec.scales.copy()  # type: ignore[union-attr]
    engine.close()
    return found


def remembered(home: Path) -> Path:
    (file,) = (home / "cache" / "kv_maxima").iterdir()
    return file


def test_only_the_first_load_measures(tmp_path: Path, home: Path, sessions: Callable[[], int]) -> None:
    path = folder(tmp_path)
    first = loaded_scales(path)
    assert sessions() == 2
    assert remembered(home).stat().st_size == 32 + 4 * SPEC.kv_row_elements()
    assert np.array_equal(loaded_scales(path), first)
    assert sessions() == 1
    other = LoadSpec(context=128, chunk=8, kv_type="int4", tree_leaves=2)
    coarser = loaded_scales(path, other)  # the same figures serve both types, and any context
    assert sessions() == 1
    assert np.allclose(coarser / first, coarser.flat[0] / first.flat[0])


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer", "foreign"])
def test_a_damaged_file_is_made_anew(damage: str, tmp_path: Path, home: Path, sessions: Callable[[], int]) -> None:
    path = folder(tmp_path)
    first = loaded_scales(path)
    file = remembered(home)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[77] ^= 1
    damaged = {"cut": whole[:-4], "flipped": bytes(flipped), "empty": b"", "longer": whole + b"1234", "foreign": b"{}"}
    file.write_bytes(damaged[damage])
    sessions()
    assert np.array_equal(loaded_scales(path), first)
    assert sessions() == 2
    assert remembered(home).read_bytes() == whole


def test_other_weights_under_the_same_name_are_measured(tmp_path: Path, home: Path) -> None:
    path = folder(tmp_path)
    first = loaded_scales(path)
    data = path / "model.onnx.data"
    numbers = np.frombuffer(data.read_bytes(), np.float32).copy()
    data.write_bytes((numbers * 1.5).tobytes())
    assert not np.allclose(loaded_scales(path), first)
    assert len(list((home / "cache" / "kv_maxima").iterdir())) == 2


def test_a_folder_that_moves_keeps_its_scales(tmp_path: Path, home: Path, sessions: Callable[[], int]) -> None:
    path = folder(tmp_path)
    first = loaded_scales(path)
    os.rename(path, tmp_path / "elsewhere")
    sessions()
    assert np.array_equal(loaded_scales(tmp_path / "elsewhere"), first)
    assert sessions() == 1


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sessions: Callable[[], int]
) -> None:
    (tmp_path / "a_file").write_text("in the way")
    monkeypatch.setenv("WATTWISE_HOME", str(tmp_path / "a_file"))
    path = folder(tmp_path)
    assert np.array_equal(loaded_scales(path), loaded_scales(path))
    assert sessions() == 4


def test_the_oldest_files_make_room(tmp_path: Path, home: Path) -> None:
    known = home / "cache" / "kv_maxima"
    known.mkdir(parents=True)
    for i in range(70):
        (known / f"{i:02}.bin").write_bytes(b"old")
        os.utime(known / f"{i:02}.bin", (1000 + i, 1000 + i))
    loaded_scales(folder(tmp_path))
    names = {file.name for file in known.iterdir()}
    assert len(names) == 64
    assert names >= {f"{i:02}.bin" for i in range(7, 70)}


def test_without_a_home_of_its_own_it_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    platformdirs = pytest.importorskip("platformdirs")
    monkeypatch.delenv("WATTWISE_HOME")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_, **__: str(tmp_path / "users"))
    loaded_scales(folder(tmp_path))
    assert len(list((tmp_path / "users" / "kv_maxima").iterdir())) == 1


def test_it_can_be_stopped(tmp_path: Path, home: Path) -> None:
    told: list[float] = []

    def stop_in_the_middle(share: float) -> bool:
        told.append(share)
        return share < 0.2

    with pytest.raises(LoadError, match="stopped"):
        BACKEND.load(open_artifact(folder(tmp_path)), LOAD, stop_in_the_middle)
    assert told == sorted(told)
    assert 0.2 <= told[-1] < 0.5
    assert not (home / "cache").exists()


def test_models_with_few_positions_are_measured_on_few(tmp_path: Path) -> None:

    for context in (1, 5, 32):
        spec = dataclasses.replace(TINY_SPECS["gpt2"], context=context)
        assert context < TOKENS
        path = write_onnx_folder(tmp_path / f"m{context}", spec, random_weights(spec))
        assert loaded_scales(path, LoadSpec(context=context, kv_type="int8")).min() > 0


def test_channels_without_use_get_a_scale_above_zero() -> None:
    maxima = np.zeros((1, 2, 2, 4), np.float32)
    maxima[0, 0, 0] = [0, 5, 1e-9, 2]
    scales = channel_scales(maxima, "int8")
    assert scales.min() > 0
    assert scales[0, 0, 0].argmax() == 1
    assert scales[0, 0, 0, 1] >= 5 / 127


def test_keys_fit_their_scales_at_positions_that_were_never_measured(tmp_path: Path) -> None:
    """A pair turns at every position; its length, which was measured, bounds both channels."""
    found = loaded_scales(folder(tmp_path))
    ref = ReferenceEngine(SPEC, random_weights(SPEC), LoadSpec(context=2048, chunk=512, kv_type="f32"))
    ids = np.random.default_rng(5).integers(3, SPEC.vocab, 64)
    ref.forward(Batch(ids))
    ref.kv.shift(0, 64, 1500)
    keys = ref.kv.view().keys
    assert keys is not None
    for layer in range(SPEC.layers):
        assert (np.abs(keys(layer)) <= 128 * found[layer, 0][:, None]).mean() > 0.999


@needs_data
def test_a_real_models_text_fits_the_scales_of_its_own_words(tmp_path: Path) -> None:
    from wattwise_convert.onnx import export
    from wattwise_convert.sources import open_checkpoint
    from wattwise_runtimes.text.sources import load_tokenizer

    path = export(open_checkpoint(DATA / "models" / "stories3M-hf"), tmp_path / "m", quant="fp32").path
    engine = BACKEND.load(open_artifact(path), LoadSpec(context=512, kv_type="int8"))
    text = (DATA / "text" / "tinystories_sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")[10]
    engine.forward(Batch(load_tokenizer(path).encode(text.strip(), bos=True)[:512], logits="none"))
    codes = np.stack([part[0, :, : engine.kv.length] for layer in engine.kv.layers for part in layer])  # type: ignore[union-attr]
    clipped = np.mean(np.abs(codes.astype(np.int32)) >= 127)
    assert clipped < 0.001
    assert np.abs(codes.astype(np.int32)).mean() > 10, "the steps are not much too coarse"
