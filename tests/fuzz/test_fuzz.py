"""Fuzzing within the test suite: more than 120,000 inputs with fixed seeds. `make fuzz` runs longer with other seeds.

Every input must be read or be refused with a typed error, quickly and without much memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.native_probe import NativeProbe
from fuzz.targets import Outcome, Target, fuzz, native_targets, targets
from support.data import DATA, needs_data
from wattwise_devices.errors import Error
from wattwise_runtimes.formats.gguf import parse_gguf
from wattwise_runtimes.formats.json_file import parse_json
from wattwise_runtimes.formats.onnx_file import parse_onnx
from wattwise_runtimes.formats.safetensors import parse_safetensors
from wattwise_runtimes.formats.tokenizer_json import check_tokenizer_data

INPUTS = {
    "gguf": 40_000,
    "model": 3_000,
    "text": 10_000,
    "safetensors": 20_000,
    "onnx": 20_000,
    "json": 15_000,
    "tokenizer": 15_000,
    "session-index": 15_000,
    "kv-rows": 5_000,
}
HERE = Path("fuzzed")


def check(outcome: Outcome) -> None:
    """No finding, both outcomes seen, quick and small."""
    if outcome.failures:
        data, error = outcome.failures[0]
        raise AssertionError(f"{len(outcome.failures)} findings; {len(data)} bytes: {data[:2000]!r}") from error
    assert outcome.accepted > 0
    assert outcome.refused > outcome.inputs // 4
    assert outcome.slowest_s < 0.5
    assert outcome.grown_bytes < 64 << 20


@pytest.mark.parametrize("name", INPUTS)
def test_mutated_files(tmp_path: Path, name: str) -> None:
    (target,) = (t for t in targets(tmp_path) if t.name == name)
    check(fuzz(target, random.Random(f"{name} 1"), inputs=INPUTS[name]))


def _real(name: str, run: Callable[[bytes], Any], **more: Any) -> Target:
    return Target(name, [(DATA / name).read_bytes()], run, **more)


REAL = [
    ("models/random-llama2-gguf/llama-2-tiny-random.gguf", lambda d: parse_gguf(d, HERE), {"head": 9000}),
    ("models/random-gpt2-onnx-genai/past.onnx", lambda d: parse_onnx(d, HERE), {}),
    ("models/stories260K-hf/model.safetensors", lambda d: parse_safetensors(d, HERE), {"text": True}),
    ("models/stories260K-hf/tokenizer.json", lambda d: check_tokenizer_data(parse_json(d, HERE), HERE), {"text": True}),
    ("models/random-gpt2-onnx-genai/genai_config.json", lambda d: parse_json(d, HERE), {"text": True}),
]


@pytest.mark.data
@needs_data
@pytest.mark.parametrize(("name", "run", "more"), REAL, ids=[name.rsplit("/", 1)[-1] for name, _, _ in REAL])
def test_mutated_real_files(name: str, run: Callable[[bytes], Any], more: dict[str, Any]) -> None:
    check(fuzz(_real(name, run, **more), random.Random(f"{name} 1"), inputs=400))


PARSERS: dict[str, tuple[bytes, Callable[[bytes, Path], Any]]] = {
    "gguf": (b"GGUF\x03\0\0\0", parse_gguf),
    "safetensors": (b"", parse_safetensors),
    "onnx": (b"\x08\x09", parse_onnx),
    "json": (b"", parse_json),
}


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=400, deadline=None)
@given(data=st.binary(max_size=400) | st.text('[]{}",:\\01-e.', max_size=80).map(str.encode))
def test_bytes_from_nowhere(name: str, data: bytes) -> None:
    magic, parse = PARSERS[name]
    for text in (data, magic + data):
        try:
            parse(text, HERE)
        except Error as error:
            assert str(error).strip()


@pytest.mark.llama
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama-fields"])
def test_models_that_pass_never_crash_llama(tmp_path: Path, name: str) -> None:
    """Mutated models that our checks accept are loaded and run by llama.cpp in child processes."""
    pytest.importorskip("llama_cpp")
    (target,) = (t for _, _, t in native_targets(tmp_path) if t.name == name)
    make, path, ends = target.inputs(random.Random(f"{name} 1")), tmp_path / "x.gguf", []
    with NativeProbe("llama") as probe:
        while len(ends) < 100:
            data = make()
            try:
                target.run(data)
            except Error:
                continue
            path.write_bytes(data)
            ends.append(probe.ask(path))
    assert set(ends) <= {"ok", "refused"}
    assert ends.count("ok") > 60
