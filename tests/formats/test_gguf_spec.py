"""ModelSpec and canonical weights out of GGUF files that another writer made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest

from support.data import DATA, needs_data
from support.gguf_files import write_tiny_gguf
from support.specs import TINY_SPECS, random_weights
from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.formats.gguf import GGUFFile, read_gguf
from wattwise_runtimes.formats.gguf_spec import canonical_tensors, quant_name, spec_from_gguf
from wattwise_runtimes.spec import RopeSpec

# Written without a vocabulary, so these cannot come back; the name is the file's.
_NOT_IN_FILE = {"bos_id": None, "eos_ids": (), "name": "model"}


def _file(tmp_path: Path, key: str, quant: str = "f32") -> GGUFFile:
    spec = TINY_SPECS[key]
    return read_gguf(write_tiny_gguf(tmp_path / "model.gguf", spec, random_weights(spec), quant))


@pytest.mark.parametrize("key", ["llama", "llama-linear", "qwen2", "qwen3", "phi3", "gpt2"])
def test_spec_comes_back(key: str, tmp_path: Path) -> None:
    assert spec_from_gguf(_file(tmp_path, key)) == dataclasses.replace(TINY_SPECS[key], **_NOT_IN_FILE)


@pytest.mark.parametrize("key", ["llama", "llama-linear", "qwen2", "qwen3", "phi3", "gpt2"])
def test_weights_come_back_exactly(key: str, tmp_path: Path) -> None:
    file = _file(tmp_path, key)
    tensors = canonical_tensors(file, spec_from_gguf(file))
    expected = random_weights(TINY_SPECS[key])
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name].read_rows(0, tensors[name].shape[0]), value, err_msg=name)


@pytest.mark.parametrize("key", sorted(TINY_SPECS))
def test_the_same_function_comes_back(key: str, tmp_path: Path) -> None:
    """Some architectures store the same function otherwise (scales folded into weights): logits must not change."""
    spec, weights = TINY_SPECS[key], random_weights(TINY_SPECS[key])
    file = _file(tmp_path, key)
    again = spec_from_gguf(file)
    read = {n: t.read_rows(0, t.shape[0]) for n, t in canonical_tensors(file, again).items()}
    tokens = np.random.default_rng(1).integers(0, spec.vocab, 20)
    for context in (20, 200):  # below and above the long-context model's original 32
        load = LoadSpec(context=context, chunk=64, kv_type="f32")
        expected = ReferenceEngine(spec, weights, load).forward(Batch(tokens, logits="all"))
        found = ReferenceEngine(again, read, load).forward(Batch(tokens, logits="all"))
        assert np.abs(found - expected).max() < 2e-5 * expected.std()


@pytest.mark.parametrize("key", ["llama", "phi3", "gpt2"])
@pytest.mark.parametrize("rows", [(0, 1), (3, 30), (15, 17), (31, 32), (5, 5)])
def test_any_rows_can_be_read_alone(key: str, rows: tuple[int, int], tmp_path: Path) -> None:
    file = _file(tmp_path, key, "q8_0")
    for name, tensor in canonical_tensors(file, spec_from_gguf(file)).items():
        whole = tensor.read_rows(0, tensor.shape[0])
        np.testing.assert_array_equal(tensor.read_rows(*rows), whole[rows[0] : rows[1]], err_msg=name)


def test_llama3_rule_is_recognised(tmp_path: Path) -> None:
    rope = RopeSpec(
        dims=64, base=500000.0, scaling="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_context=8192,
    )  # fmt: skip
    spec = dataclasses.replace(TINY_SPECS["llama"], rope=rope, head_dim=64, context=131072)
    file = read_gguf(write_tiny_gguf(tmp_path / "model.gguf", spec, random_weights(spec)))
    assert spec_from_gguf(file).rope == rope


def _edited(file: GGUFFile, **changes: object) -> GGUFFile:
    fields = dict(file.fields)
    for key, value in changes.items():
        full = key if key.startswith("general") else f"{file.fields['general.architecture']}.{key}"
        full = full.replace("__", ".")
        if value is None:
            fields.pop(full, None)
        else:
            fields[full] = value
    return dataclasses.replace(file, fields=fields)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"block_count": None}, "block_count"),
        ({"block_count": 0}, "block_count"),
        ({"block_count": "three"}, "block_count"),
        ({"embedding_length": 1 << 40}, "embedding_length"),
        ({"attention__head_count": 0}, "head_count"),
        ({"attention__head_count_kv": 3}, "KV heads"),
        ({"attention__value_length": 8}, "value length"),
        ({"rope__dimension_count": 7}, "dimension_count"),
        ({"rope__freq_base": float("nan")}, "freq_base"),
        ({"rope__freq_base": -1.0}, "freq_base"),
        ({"attention__layer_norm_rms_epsilon": None}, "epsilon"),
        ({"context_length": True}, "context_length"),
    ],
)
def test_nonsense_is_refused_by_name(changes: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match=named):
        spec_from_gguf(_edited(_file(tmp_path, "llama"), **changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"general.architecture": "mamba"}, "mamba"),
        ({"expert_count": 8}, "expert_count"),
        ({"rope__scaling__type": "yarn"}, "yarn"),
    ],
)
def test_unknown_features_are_refused_by_name(changes: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match=named):
        spec_from_gguf(_edited(_file(tmp_path, "llama"), **changes))


def test_missing_misshaped_and_extra_tensors_are_refused(tmp_path: Path) -> None:
    file = _file(tmp_path, "llama")
    spec = spec_from_gguf(file)
    name = "blk.1.ffn_up.weight"
    without = dataclasses.replace(file, tensors={n: t for n, t in file.tensors.items() if n != name})
    with pytest.raises(CorruptArtifact, match=r"blk\.1\.ffn_up\.weight.*missing"):
        canonical_tensors(without, spec)
    bent = dataclasses.replace(file.tensors[name], shape=(95, 64))
    with pytest.raises(CorruptArtifact, match=r"shape of tensor 'blk\.1\.ffn_up\.weight'"):
        canonical_tensors(dataclasses.replace(file, tensors={**file.tensors, name: bent}), spec)
    extra = dataclasses.replace(file.tensors[name], name="blk.1.ffn_gate_exps.weight")
    with pytest.raises(UnsupportedArchitecture, match="ffn_gate_exps"):
        canonical_tensors(dataclasses.replace(file, tensors={**file.tensors, extra.name: extra}), spec)


def test_vocabulary_only_files_are_no_models(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "llama")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CorruptArtifact, match="vocabulary only"):
        spec_from_gguf(read_gguf(tmp_path / "vocab.gguf"))


def test_quant_name(tmp_path: Path) -> None:
    file = _file(tmp_path, "llama", "q8_0")
    assert quant_name(file) == "q8_0"  # by bytes
    assert quant_name(_edited(file, **{"general.file_type": 15})) == "q4_k_m"  # by its own word


@needs_data
def test_a_file_of_llama_cpps_converter() -> None:
    file = read_gguf(DATA / "models" / "random-llama2-gguf" / "llama-2-tiny-random.gguf")
    spec = spec_from_gguf(file)
    assert (spec.layers, spec.hidden, spec.heads, spec.ffn, spec.vocab, spec.context) == (1, 8, 2, 32, 32000, 4096)
    assert (spec.bos_id, spec.eos_ids, spec.add_bos, spec.tied_head, spec.norm_eps) == (1, (2,), True, False, 1e-5)
    assert sum(np.prod(t.shape) for t in canonical_tensors(file, spec).values()) == spec.parameters()
