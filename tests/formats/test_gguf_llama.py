"""The check before llama.cpp: good models pass, and whatever aborts or crashes llama.cpp is refused by name.

`CRASHES` lists sound GGUF files on which llama-cpp-python 0.3.36 ends the process when it loads or first runs them.
That they are refused is tested everywhere; that they still crash and accepted files do not, where it is installed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from fuzz.drafts import draft_of
from fuzz.native_probe import NativeProbe
from fuzz.tiny_gguf import BOOL, F32, I32, KIND, STR, U32, Draft, bpe_vocab, llama_model
from support.data import DATA, needs_data
from support.gguf_files import write_tiny_gguf
from support.specs import TINY_SPECS, random_weights
from wattwise_devices.errors import CorruptArtifact, LoadError, UnsupportedArchitecture
from wattwise_runtimes.formats.gguf import read_gguf
from wattwise_runtimes.formats.gguf_llama import MATRIX_TYPES, validate_for_llama
from wattwise_runtimes.formats.gguf_types import TYPE_BY_NAME

Change = Callable[[Draft], Any]
TOKENS = llama_model().fields["tokenizer.ggml.tokens"][0]
ONES = np.ones(32, np.float32)
SQUARE = np.ones((32, 32), np.float32)


def field(key: str, value: Any, kind: Any = None) -> Change:
    """Set a field."""
    return lambda draft: draft.set(key, value, kind)


def tensor(name: str, value: Any) -> Change:
    """Set a tensor."""
    return lambda draft: draft.tensors.__setitem__(name, value)


def token(number: int, text: str, **others: str) -> Change:
    """Set tokens: token(40, "a", t41="b")."""
    texts = list(TOKENS)
    for i, new in {number: text, **{int(k[1:]): v for k, v in others.items()}}.items():
        texts[i] = new
    return field("tokenizer.ggml.tokens", texts)


CRASHES: dict[str, tuple[Change, str]] = {  # name: (change to a good model, part of our message)
    "two equal tokens": (token(40, "x", t41="x"), "different from token 40"),
    "an empty token and its stand-in": (token(40, "", t41="[EMPTY_40]"), "different from token 40"),
    "tokens equal up to a NUL": (token(40, "a\0b", t41="a\0c"), "no NUL"),
    "no layers": (field("llama.block_count", 0), "1 to 512"),
    "513 layers": (field("llama.block_count", 513), "1 to 512"),
    "negative epsilon": (field("llama.attention.layer_norm_rms_epsilon", -1.0), "0 to 1"),
    "epsilon NaN": (field("llama.attention.layer_norm_rms_epsilon", float("nan")), "0 to 1"),
    "unknown scaling": (field("llama.rope.scaling.type", "bogus", STR), "one of none, linear"),
    "experts without use": (field("llama.expert_count", 4, U32), "'llama.expert_count'"),
    "too many experts": (field("llama.expert_count", 5000, U32), "'llama.expert_count'"),
    "use without experts": (field("llama.expert_used_count", 4, U32), "'llama.expert_used_count'"),
    "more prediction layers than layers": (field("llama.nextn_predict_layers", 9, U32), "not known"),
    "another tokenizer's data": (field("tokenizer.ggml.model", "bert"), "tokenizer 'bert'"),
    "norm in f16": (tensor("blk.0.attn_norm.weight", ONES.astype(np.float16)), "one of f32"),
    "norm in i32": (tensor("output_norm.weight", ONES.astype(np.int32)), "one of f32"),
    "norm in q8_0": (tensor("blk.0.ffn_norm.weight", (np.zeros(34, np.uint8), GGMLQuantizationType(8))), "one of f32"),
    "bias in f16": (tensor("blk.0.attn_q.bias", ONES.astype(np.float16)), "one of f32"),
    "bias in i8": (tensor("blk.0.attn_output.bias", ONES.astype(np.int8)), "one of f32"),
    "rope factors in f16": (tensor("rope_freqs.weight", np.ones(4, np.float16)), "one of f32"),
    "matrix in f64": (tensor("blk.0.ffn_up.weight", SQUARE.astype(np.float64)), "type of tensor"),
    "matrix in i8": (tensor("blk.0.ffn_up.weight", SQUARE.astype(np.int8)), "type of tensor"),
    "matrix in i32": (tensor("output.weight", np.ones((64, 32), np.int32)), "type of tensor"),
    "embedding in i16": (tensor("token_embd.weight", np.ones((64, 32), np.int16)), "type of tensor"),
}  # fmt: skip
OTHERS: dict[str, tuple[Change, str]] = {  # refused as well: llama.cpp says no, or runs on nonsense
    "architecture missing": (lambda d: d.fields.pop("general.architecture"), "'general.architecture'"),
    "architecture no text": (field("general.architecture", 3, U32), "'general.architecture'"),
    "architecture unknown": (field("general.architecture", "zzz"), "'zzz' is not known"),
    "unknown key": (field("llama.attention.causal", False, BOOL), "'llama.attention.causal'"),
    "count of another type": (field("llama.block_count", 1, I32), "type of 'llama.block_count'"),
    "count missing": (lambda d: d.fields.pop("llama.embedding_length"), "'llama.embedding_length' is 'missing'"),
    "epsilon missing": (lambda d: d.fields.pop("llama.attention.layer_norm_rms_epsilon"), "'missing'"),
    "heads no divisor": (field("llama.attention.head_count", 5), "head_count"),
    "kv heads no divisor": (field("llama.attention.head_count_kv", 3), "a divisor of the 4 heads"),
    "values shorter than keys": (field("llama.attention.value_length", 4, U32), "8, the key length"),
    "half a head rotated": (field("llama.rope.dimension_count", 4), "8, the head size"),
    "base NaN": (field("llama.rope.freq_base", float("nan")), "a positive number"),
    "scale infinite": (field("llama.rope.scaling.factor", float("inf"), F32), "a positive number"),
    "window pattern": (field("llama.attention.sliding_window_pattern", [True] * 3, (KIND.ARRAY, BOOL)), "1 flags"),
    "vocabulary size": (field("llama.vocab_size", 63, U32), "64, the number of tokens"),
    "no tokens": (lambda d: d.fields.pop("tokenizer.ggml.tokens"), "'tokenizer.ggml.tokens' is 'missing'"),
    "tokens no text": (field("tokenizer.ggml.tokens", [1] * 64, (KIND.ARRAY, I32)), "type of 'tokenizer.ggml.tokens'"),
    "few scores": (field("tokenizer.ggml.scores", [0.0] * 3), "64 (tokens)"),
    "few token types": (field("tokenizer.ggml.token_type", [1] * 3), "64 (tokens)"),
    "token type 99": (field("tokenizer.ggml.token_type", [99] * 64), "0 to 6"),
    "byte token without byte": (token(5, "ab"), "text of byte token 5"),
    "bos beyond the vocabulary": (field("tokenizer.ggml.bos_token_id", 64), "less than 64"),
    "bos of another type": (field("tokenizer.ggml.bos_token_id", 1, I32), "type of 'tokenizer.ggml.bos_token_id'"),
    "bos wanted but none": (lambda d: d.fields.pop("tokenizer.ggml.bos_token_id"), "add_bos_token is set"),
    "flag of another type": (field("tokenizer.ggml.add_bos_token", 1, U32), "type of 'tokenizer.ggml.add_bos_token'"),
    "template no text": (field("tokenizer.chat_template", 5, U32), "type of 'tokenizer.chat_template'"),
    "tensor missing": (lambda d: d.tensors.pop("blk.0.ffn_up.weight"), "'blk.0.ffn_up.weight' is 'missing'"),
    "tensor unknown": (tensor("blk.9.foo", ONES), "the tensor 'blk.9.foo'"),
    "shape": (tensor("blk.0.ffn_up.weight", np.ones((32, 16), np.float32)), "shape of tensor 'blk.0.ffn_up.weight'"),
    "three dimensions": (tensor("blk.0.ffn_up.weight", np.ones((32, 32, 1), np.float32)), "shape of tensor"),
    "more layers than tensors": (field("llama.block_count", 2), "'blk.1.attn_norm.weight'"),
}


@pytest.fixture(scope="module")
def probe() -> Iterator[NativeProbe]:
    pytest.importorskip("llama_cpp")
    with NativeProbe("llama") as made:
        yield made


def changed(path: Path, change: Change) -> Path:
    """A good model with one change, written to `path`."""
    draft = llama_model()
    change(draft)
    return draft.write(path)


@pytest.mark.parametrize("name", [*CRASHES, *OTHERS])
def test_refused_by_name(tmp_path: Path, name: str) -> None:
    change, message = (CRASHES | OTHERS)[name]
    file = read_gguf(changed(tmp_path / "x.gguf", change))  # the container is sound
    with pytest.raises(LoadError) as caught:
        validate_for_llama(file)
    assert isinstance(caught.value, CorruptArtifact | UnsupportedArchitecture)
    assert message in str(caught.value)


@pytest.mark.llama
@pytest.mark.slow
@pytest.mark.parametrize("name", CRASHES)
def test_what_is_refused_as_a_crash_does_crash(tmp_path: Path, probe: NativeProbe, name: str) -> None:
    """A rule whose crash is gone with a newer llama.cpp can be relaxed."""
    assert probe.ask(changed(tmp_path / "x.gguf", CRASHES[name][0])).startswith("signal")


@pytest.mark.parametrize("name", TINY_SPECS)
def test_good_models_pass(tmp_path: Path, name: str) -> None:
    spec = TINY_SPECS[name]
    validate_for_llama(read_gguf(write_tiny_gguf(tmp_path / "x.gguf", spec, random_weights(spec))))


@pytest.mark.llama
@pytest.mark.parametrize("name", TINY_SPECS)
def test_good_models_run(tmp_path: Path, probe: NativeProbe, name: str) -> None:
    spec = TINY_SPECS[name]
    assert probe.ask(write_tiny_gguf(tmp_path / "x.gguf", spec, random_weights(spec))) == "ok"


def small_vocabularies() -> dict[str, Draft]:
    """The two kinds of vocabulary, each as a whole model."""
    bpe = llama_model()
    for key in [k for k in bpe.fields if k.startswith("tokenizer.")]:
        del bpe.fields[key]
    bpe.fields |= bpe_vocab(64)
    return {"spm": llama_model(), "bpe": bpe}


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize(("value", "kind"), [(1, U32), ([False] * 3, (KIND.ARRAY, BOOL))])
def test_a_window_without_a_sliding_layer(tmp_path: Path, name: str, value: Any, kind: Any) -> None:
    """llama.cpp asserts that some layer slides (found by fuzzing)."""
    draft = draft_of(write_tiny_gguf(tmp_path / "x.gguf", TINY_SPECS[name], random_weights(TINY_SPECS[name])))
    key = f"{draft.fields['general.architecture'][0]}.attention.sliding_window_pattern"
    path = draft.set(key, value, kind).write(tmp_path / "y.gguf")
    with pytest.raises(CorruptArtifact, match="sliding_window_pattern"):
        validate_for_llama(read_gguf(path))


@pytest.mark.parametrize("kind", ["spm", "bpe"])
def test_vocabularies_pass(tmp_path: Path, kind: str) -> None:
    validate_for_llama(read_gguf(small_vocabularies()[kind].write(tmp_path / "x.gguf")))


@pytest.mark.llama
@pytest.mark.parametrize("kind", ["spm", "bpe"])
def test_vocabularies_run(tmp_path: Path, probe: NativeProbe, kind: str) -> None:
    assert probe.ask(small_vocabularies()[kind].write(tmp_path / "x.gguf")) == "ok"


@pytest.mark.parametrize("merge", ["", "a", " a", "a ", "a\0 b"])
def test_bad_merges(tmp_path: Path, merge: str) -> None:
    draft = small_vocabularies()["bpe"].set("tokenizer.ggml.merges", ["a b", merge])
    with pytest.raises(CorruptArtifact, match="merge 1"):
        validate_for_llama(read_gguf(draft.write(tmp_path / "x.gguf")))


def test_alignment_below_that_of_buffers(tmp_path: Path) -> None:
    """llama.cpp aborts where the mapped data does not begin at a multiple of 32."""
    from formats.raw_gguf import Raw, scalar, text, u32
    from formats.raw_gguf import tensor as entry

    fields = [scalar("general.architecture", 8, text("llama")), u32("general.alignment", 8)]
    path = tmp_path / "x.gguf"
    path.write_bytes(Raw(fields, [entry()], bytes(16), alignment=8).build())
    file = read_gguf(path)
    from wattwise_runtimes.formats.gguf_llama import _check_placement

    with pytest.raises(CorruptArtifact, match="a multiple of 32"):
        _check_placement(file)


def typed_model(name: str) -> Draft:
    """A model whose matrices and embedding are all of one type, of random blocks with small scales."""
    rng = np.random.default_rng(0)
    draft = llama_model(vocab=32, hidden=256, heads=4, kv_heads=4, ffn=256)
    kind = TYPE_BY_NAME[name]
    for key, value in draft.tensors.items():
        if value.ndim == 2:
            blocks = rng.integers(0, 4, (value.shape[0], kind.nbytes(value.shape[1])), dtype=np.uint8)
            draft.tensors[key] = (blocks, GGMLQuantizationType(kind.number))
    return draft


WRITABLE = sorted(t.name.lower() for t in GGML_QUANT_SIZES if t.name.lower() in MATRIX_TYPES)  # known to the package


@pytest.mark.llama
@pytest.mark.slow
@pytest.mark.parametrize("name", WRITABLE)
def test_every_accepted_matrix_type_runs(tmp_path: Path, probe: NativeProbe, name: str) -> None:
    path = typed_model(name).write(tmp_path / "x.gguf")
    validate_for_llama(read_gguf(path))
    assert probe.ask(path) == "ok"


@pytest.mark.llama
def test_the_newest_matrix_type_runs(tmp_path: Path, probe: NativeProbe) -> None:
    """q2_0, which the gguf package cannot write: as q1_0 of twice the width, whose rows are as long, then renamed."""
    draft = llama_model(vocab=32, hidden=128, heads=4, kv_heads=4, ffn=128)
    for key, value in draft.tensors.items():
        if value.ndim == 2:
            blocks = np.random.default_rng(0).integers(0, 4, (value.shape[0], 36), dtype=np.uint8)
            draft.tensors[key] = (blocks, GGMLQuantizationType.Q1_0)
    path = draft.write(tmp_path / "x.gguf")
    data = path.read_bytes()
    for rows in (32, 128):
        data = data.replace(struct.pack("<QQI", 256, rows, 41), struct.pack("<QQI", 128, rows, 42))
    path.write_bytes(data)
    file = read_gguf(path)
    assert file.tensors["output.weight"].type == "q2_0"
    validate_for_llama(file)
    assert probe.ask(path) == "ok"


@pytest.mark.data
@needs_data
def test_a_real_model_passes() -> None:
    validate_for_llama(read_gguf(DATA / "models" / "random-llama2-gguf" / "llama-2-tiny-random.gguf"))
