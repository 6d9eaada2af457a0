"""The two story models, converted from their Hugging Face folders: ids and perplexity of the data's README."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.data import DATA, needs_data
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, Engine, LoadSpec
from wattwise_runtimes.engines.onnx import BACKEND
from wattwise_runtimes.text.sources import load_tokenizer

pytestmark = needs_data

GREEDY = {
    "stories260K": "1 403 407 261 378 432 383 286 261 376 298 315 421 395 317 426 338 401 396 267 337 410 408 419 292"
    " 411 322 265 282 295 433 426 385 328 432 358 394 261 370 432 352",
    "stories3M": "1 403 407 261 378 4016 383 286 261 376 445 395 317 4010 338 435 267 337 590 322 265 2236 4010 385"
    " 328 4016 358 425 267 265 524 335 311 357 4010 342 394 261 370 539 335",
}
NATS = {"stories260K": 1.24864, "stories3M": 1.23523}


@pytest.fixture(scope="module", params=["stories260K", "stories3M"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def convert(name: str, quant: str, folder: Path) -> Path:
    from wattwise_convert.onnx import export
    from wattwise_convert.sources import open_checkpoint

    return export(open_checkpoint(DATA / "models" / f"{name}-hf"), folder, quant=quant).path


@pytest.fixture(scope="module")
def engine(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Path]]:
    folder = convert(name, "fp32", tmp_path_factory.mktemp(name) / "m")
    loaded = BACKEND.load(open_artifact(folder), LoadSpec(context=512, kv_type="f32"))
    yield loaded, folder
    loaded.close()


def greedy(engine: Engine, prompt: list[int], count: int) -> list[int]:
    engine.kv.clear()
    ids, logits = list(prompt), engine.forward(Batch(prompt))
    while len(ids) < count and (len(ids) == len(prompt) or ids[-1] not in engine.spec.eos_ids):
        ids.append(int(logits[0].argmax()))
        logits = engine.forward(Batch(ids[-1:]))
    return ids


def nats_per_token(engine: Engine, folder: Path, stories: slice) -> float:
    tokenizer = load_tokenizer(folder)
    texts = (DATA / "text" / "tinystories_sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    total, count = 0.0, 0
    for text in texts[stories]:
        ids = tokenizer.encode(text.strip(), bos=True)[:256]
        engine.kv.clear()
        logits = engine.forward(Batch(ids, logits="all"))[:-1].astype(np.float64)
        top = logits.max(axis=1)
        normaliser = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        total += (normaliser - logits[np.arange(len(ids) - 1), ids[1:]]).sum()
        count += len(ids) - 1
    return total / count


def test_greedy_ids_in_fp32(engine: tuple[Engine, Path], name: str) -> None:
    wanted = [int(i) for i in GREEDY[name].split()]
    assert greedy(engine[0], wanted[:5], len(wanted)) == wanted
    whole = greedy(engine[0], wanted[:5], 512)
    assert (len(whole), whole[-1]) == ({"stories260K": 347, "stories3M": 173}[name], 1)


def test_greedy_ids_in_fp16(name: str, tmp_path: Path) -> None:
    loaded = BACKEND.load(open_artifact(convert(name, "fp16", tmp_path / "m")), LoadSpec(context=64, kv_type="f32"))
    wanted = [int(i) for i in GREEDY[name].split()]
    assert greedy(loaded, wanted[:5], len(wanted)) == wanted


def test_the_folder_keeps_tokenizer_and_end_ids(engine: tuple[Engine, Path]) -> None:
    tokenizer = load_tokenizer(engine[1])
    assert tokenizer.encode("Once upon a time", bos=True) == [1, 403, 407, 261, 378]
    assert {1, 2} <= set(engine[0].spec.eos_ids)
    assert {1, 2} <= set(tokenizer.eog_ids)


@pytest.mark.slow
def test_perplexity_in_fp32(engine: tuple[Engine, Path], name: str) -> None:
    nats = nats_per_token(engine[0], engine[1], slice(10, 60))
    assert math.exp(nats - NATS[name]) == pytest.approx(1, abs=0.005)
    assert nats == pytest.approx(NATS[name], abs=1e-4)  # the arithmetic is float32 on both sides


@pytest.mark.parametrize(("quant", "most"), [("int8", 1.005), ("int4", 1.25)])
def test_what_quantising_costs(quant: str, most: float, tmp_path: Path, engine: tuple[Engine, Path], name: str) -> None:
    if name != "stories3M":
        pytest.skip("too small to be quantised well; even 3M parameters lose 0.17 nats at 4 bits")
    folder = convert(name, quant, tmp_path / "m")
    loaded = BACKEND.load(open_artifact(folder), LoadSpec(context=512, kv_type="f32"))
    few = slice(10, 16)
    ratio = math.exp(nats_per_token(loaded, folder, few) - nats_per_token(engine[0], engine[1], few))
    assert 0.98 < ratio < most
