"""The whole path on real models: a Hugging Face folder becomes GGUF and ONNX, both are planned, loaded and run.

Expected values are those that others measured on these files with numpy and with transformers (the data's README).
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import wattwise
from support.data import DATA, needs_data
from wattwise.evaluation import evaluate
from wattwise_convert.api import convert
from wattwise_convert.sources import open_checkpoint
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine

pytestmark = [needs_data, pytest.mark.slow]

PROMPT = "Once upon a time"
GREEDY = {
    "stories260K": "403 407 261 378 432 383 286 261 376 298 315 421 395 317 426 338 401 396 267 337 410 408 419 292 "
    "411 322 265 282 295 433 426 385 328 432 358 394 261 370 432 352",
    "stories3M": "403 407 261 378 4016 383 286 261 376 445 395 317 4010 338 435 267 337 590 322 265 2236 4010 385 "
    "328 4016 358 425 267 265 524 335 311 357 4010 342 394 261 370 539 335",
}
WHOLE = {  # length and SHA-256 of the ids of the whole greedy story, prompt and final 1 included
    "stories260K": (347, "2760ccf8071e39fbb6021abce99e70b434f820522191a02c3b7702c6923f3061"),
    "stories3M": (173, "79b3a88ccb39cb62bf9c52ddabd554b4f8eae24e9bf1537cf865c1a885699878"),
}
SCORES = {"stories260K": (12_401, 3.4856), "stories3M": (8_967, 3.4392)}  # tokens, perplexity
ENGINES = {"llamacpp": "llama_cpp", "onnx": "onnxruntime"}
MODELS = ("stories260K", "stories3M")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("first-light")
    made = {}
    for name in MODELS:
        source = DATA / "models" / f"{name}-hf"
        made[name, "llamacpp"] = convert(source, folder / f"{name}.gguf", quant="f32").path
        made[name, "onnx"] = convert(source, folder / f"{name}-onnx", quant="fp32").path
    return made


@cache
def stories() -> tuple[str, ...]:
    """Pieces 10..59 of the sample, as in the reference measurement."""
    text = (DATA / "text" / "tinystories_sample.txt").read_text(encoding="utf-8")
    return tuple(text.split("<|endoftext|>")[10:60])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_greedy_story_is_the_published_one_to_its_end(name: str, engine: str, converted: dict) -> None:
    pytest.importorskip(ENGINES[engine])
    with wattwise.load(converted[name, engine], engine=engine, kv_type="f32") as model:
        prompt = model.prompt_ids(PROMPT, raw=True)
        assert prompt == [1, 403, 407, 261, 378]
        reply = model.chat(PROMPT, raw=True, temperature=0)
    ids = prompt + reply.ids
    assert ids[1:41] == [int(i) for i in GREEDY[name].split()]
    assert reply.finish_reason == "stop"
    count, digest = WHOLE[name]
    assert len(ids) == count
    assert hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest() == digest


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_logits_agree_with_the_reference(name: str, engine: str, converted: dict) -> None:
    pytest.importorskip(ENGINES[engine])
    checkpoint = open_checkpoint(DATA / "models" / f"{name}-hf")
    weights = {key: tensor.read() for key, tensor in checkpoint.tensors.items()}
    with wattwise.load(converted[name, engine], engine=engine, kv_type="f32") as model:
        ids = model.tokenizer.encode(stories()[0].strip(), bos=True)[:200]
        got = model.engine.forward(Batch(ids, logits="all")).copy()
    want = ReferenceEngine(checkpoint.spec, weights, LoadSpec(context=256)).forward(Batch(ids, logits="all"))
    assert np.abs(got - want).max() < 1e-3 * want.std()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MODELS)
def test_perplexity_is_the_published_one(name: str, engine: str, converted: dict) -> None:
    pytest.importorskip(ENGINES[engine])
    tokens, perplexity = SCORES[name]
    text = "<|endoftext|>".join(stories())
    with wattwise.load(converted[name, engine], engine=engine, context=256) as model:
        found = evaluate(model, text, window=256, split="<|endoftext|>")
    assert found.tokens == tokens
    assert abs(found.perplexity / perplexity - 1) < 0.005
