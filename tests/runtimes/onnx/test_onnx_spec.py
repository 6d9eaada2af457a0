"""ModelSpec out of ONNX folders: what goes in comes out, and nothing ill-formed gets through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.data import DATA, needs_data
from support.specs import TINY_SPECS
from wattwise_devices.errors import CorruptArtifact, Error, UnsupportedArchitecture
from wattwise_runtimes.formats.onnx_spec import spec_from_onnx_folder, wattwise_record


def write(folder: Path, value: Any, name: str = "wattwise.json") -> Path:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", TINY_SPECS)
def test_our_record_gives_the_spec_back(name: str, tmp_path: Path) -> None:
    spec = TINY_SPECS[name]
    assert spec_from_onnx_folder(write(tmp_path, wattwise_record(spec, quant="int4", version="1"))) == spec


@pytest.mark.parametrize(
    ("change", "named"),
    [({"layers": 0}, "layers"), ({"layers": "3"}, "layers"), ({"hidden": 1 << 40}, "hidden"),
     ({"heads": True}, "heads"), ({"rope": {"dims": 18}}, "rope dims"), ({"rope": {"dims": 7}}, "rope dims"),
     ({"norm": "batch"}, "norm"), ({"surprise": 1}, "surprise"), ({"rope": {"dims": 16, "x": 1}}, "rope"),
     ({"rope": {}}, "dims"), ({"eos_ids": [1, "2"]}, "eos_ids"), ({"kv_heads": 3}, "kv_heads"),
     ({"sliding_layers": [True]}, "sliding_layers"), ({"norm_eps": None}, "norm_eps"), ({"layers": 100000}, "layers"),
     ({"sliding_window": 0}, "sliding_window"), ({"head_dim": -16}, "head_dim")],
)  # fmt: skip
def test_every_bad_field_is_named(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    record = wattwise_record(TINY_SPECS["llama"], quant="int4", version="1")
    record["spec"] |= change
    with pytest.raises(CorruptArtifact, match=named):
        spec_from_onnx_folder(write(tmp_path, record))


def test_a_later_format_is_refused_by_its_number(tmp_path: Path) -> None:
    record = wattwise_record(TINY_SPECS["llama"], quant="int4", version="9") | {"format": 7}
    with pytest.raises(UnsupportedArchitecture, match="7"):
        spec_from_onnx_folder(write(tmp_path, record))


GENAI = {
    "model": {
        "type": "llama", "vocab_size": 100, "context_length": 64, "eos_token_id": [2, 3], "bos_token_id": 1,
        "decoder": {"head_size": 16, "num_key_value_heads": 2, "num_attention_heads": 4, "num_hidden_layers": 3,
                    "hidden_size": 64, "filename": "m.onnx", "sliding_window": {"window_size": 8}},
    }
}  # fmt: skip


def test_genais_configuration(tmp_path: Path) -> None:
    spec = spec_from_onnx_folder(write(tmp_path, GENAI, "genai_config.json"))
    assert (spec.layers, spec.heads, spec.kv_heads, spec.head_dim, spec.hidden) == (3, 4, 2, 16, 64)
    assert (spec.vocab, spec.context, spec.bos_id, spec.eos_ids, spec.sliding_window) == (100, 64, 1, (2, 3), 8)


@needs_data
def test_an_old_configuration_with_few_fields() -> None:
    spec = spec_from_onnx_folder(DATA / "models" / "random-gpt2-onnx-genai")
    assert (spec.layers, spec.kv_heads, spec.head_dim, spec.vocab, spec.context) == (5, 4, 8, 1000, 512)
    assert spec.eos_ids == (98,)


LEAVES = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(GENAI["model"]) + sorted(GENAI["model"]["decoder"])), VALUES, st.booleans())
def test_any_value_in_any_place_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any, ours: bool
) -> None:
    folder = tmp_path_factory.mktemp("spec")
    if ours:
        record = wattwise_record(TINY_SPECS["gemma3_text"], quant="int4", version="1")
        keys = sorted(record["spec"])
        record["spec"][keys[hash(key) % len(keys)]] = value
        write(folder, record)
    else:
        config = json.loads(json.dumps(GENAI))
        place = config["model"] if key in config["model"] else config["model"]["decoder"]
        place[key] = value
        write(folder, config, "genai_config.json")
    try:
        spec = spec_from_onnx_folder(folder)
    except Error:
        return
    assert 0 < spec.layers <= 4096
    assert 0 < spec.head_dim <= 4096
