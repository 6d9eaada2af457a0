"""config.json of real models, and configs and folders that contradict themselves. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from support.data import DATA, needs_data
from support.hf_models import write_tokenizer
from support.specs import TINY_SPECS, random_weights
from wattwise_convert import archs
from wattwise_convert.sources import open_checkpoint
from wattwise_convert.sources.hf import spec_of_config
from wattwise_devices.errors import CorruptArtifact, LoadError, UnsupportedArchitecture
from wattwise_runtimes.spec import ModelSpec, RopeSpec

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip


def spec_of(tmp_path: Path, **changes: Any) -> ModelSpec:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in (LLAMA | changes).items() if v is not ...}))
    return spec_of_config(path)


@needs_data
def test_llama_32_1b() -> None:
    assert spec_of_config(DATA / "models" / "configs" / "Llama-3.2-1B-Instruct.config.json") == ModelSpec(
        architecture="llama", layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, ffn=8192, vocab=128256,
        context=131072, norm_eps=1e-5, rope=RopeSpec(dims=64, base=500000.0), tied_head=True, bos_id=128000,
        eos_ids=(128001,),
    )  # fmt: skip


@needs_data
def test_qwen_25_05b() -> None:
    """It names a sliding window and says in the next line that it does not use it."""
    spec = spec_of_config(DATA / "models" / "configs" / "Qwen2.5-0.5B-Instruct.config.json")
    assert spec == ModelSpec(
        architecture="qwen2", layers=24, hidden=896, heads=14, kv_heads=2, head_dim=64, ffn=4864, vocab=151936,
        context=32768, norm_eps=1e-6, rope=RopeSpec(dims=64, base=1e6), qkv_bias=True, tied_head=True, bos_id=151643,
        eos_ids=(151645,),
    )  # fmt: skip
    assert spec.parameters() == 494_032_768  # the model card says 0.49 B


@needs_data
def test_gemma_3_1b() -> None:
    """Its first release: own names for window and pattern, and a linear scaling by 1, which is none."""
    spec = spec_of_config(DATA / "models" / "configs" / "gemma3_1b_it.config.json")
    assert spec == ModelSpec(
        architecture="gemma3_text", layers=26, hidden=1152, heads=4, kv_heads=1, head_dim=256, ffn=6912, vocab=262144,
        context=32768, norm_eps=1e-6, activation="gelu_tanh", rope=RopeSpec(dims=256, base=1e6, local_base=1e4),
        qk_norm=True, post_norms=True, attn_scale=1 / 16, embed_scale=math.sqrt(1152), tied_head=True,
        sliding_window=512, sliding_layers=tuple((i + 1) % 6 != 0 for i in range(26)), bos_id=2, eos_ids=(1, 106),
        pad_id=0,
    )  # fmt: skip
    assert spec.parameters() == 999_885_952


def test_gemma_3_4b_nested_with_defaults(tmp_path: Path) -> None:
    """The image models leave heads, head size and vocabulary to defaults."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gemma3", "eos_token_id": [1, 106], "text_config": text}))
    spec = spec_of_config(path)
    assert (spec.heads, spec.kv_heads, spec.head_dim, spec.vocab, spec.context) == (8, 4, 256, 262208, 131072)
    assert spec.rope == RopeSpec(dims=256, base=1e6, scaling="linear", factor=8.0, local_base=1e4)
    assert spec.sliding_window == 1024 and spec.sliding_layers[:6] == (True,) * 5 + (False,)
    assert spec.eos_ids == (1, 106) and spec.tied_head


def test_every_known_type_has_a_file() -> None:
    assert set(archs.known()) >= {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2"}
    for name in archs.known():
        assert archs.find(name, "here").spec


def test_qwen_window_from_a_layer_on(tmp_path: Path) -> None:
    changes = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    spec = spec_of(tmp_path, **changes)
    assert spec.sliding_window == 64 and spec.sliding_layers == (False, True, True)
    assert spec_of(tmp_path, **{**changes, "max_window_layers": 3}).sliding_window is None
    everywhere = spec_of(tmp_path, **{**changes, "max_window_layers": 0})
    assert everywhere.sliding_window == 64 and everywhere.sliding_layers == ()


def test_mistral_window(tmp_path: Path) -> None:
    assert spec_of(tmp_path, model_type="mistral").sliding_window == 4096  # transformers' default
    assert spec_of(tmp_path, model_type="mistral", sliding_window=None).sliding_window is None


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mamba"}, "'mamba'.*known are.*llama"),
    ({"model_type": "../../etc/passwd"}, "model_type"),
    ({"model_type": "_common"}, "model_type"),
    ({"model_type": ["llama"]}, "model_type"),
    ({"model_type": ...}, "model_type"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type.*'yarn'"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type.*'dynamic'"),
    ({"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2]}}, "mrope_section"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}}, "beta_fast"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.*gptq"),
    ({"num_local_experts": 8}, "num_local_experts.*8"),
    ({"num_experts": 4}, "num_experts.*4"),
    ({"hidden_act": "relu2"}, "hidden_act.*relu2"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor.*0.5"),
    ({"logit_scale": 0.25}, "logit_scale.*0.25"),
    ({"text_config": {"hidden_size": 1}}, "text_config"),
    ({"model_type": "mistral", "attention_bias": True}, "attention_bias.*True"),
    ({"model_type": "qwen2", "attention_bias": False}, "attention_bias.*False"),
    ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["linear_attention"] * 3}, "linear_attention"),
    ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ({"model_type": "gpt2", "activation_function": "quick_gelu"}, "activation_function.*quick_gelu"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), UNSUPPORTED)
def test_unknown_features_are_refused_by_name(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match=words):
        spec_of(tmp_path, **changes)


LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
PHI = {"model_type": "phi3", "original_max_position_embeddings": 64}
CORRUPT: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": ...}, "hidden_size"),
    ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": 64.0}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": 66}, "num_attention_heads"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"vocab_size": -1}, "vocab_size"),
    ({"vocab_size": 2**40}, "vocab_size"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"head_dim": 0}, "head_dim"),
    ({"head_dim": 15}, "head size"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ({"rope_theta": -1}, "rope_theta"),
    ({"eos_token_id": 256}, "eos_token_id"),
    ({"eos_token_id": [2, "x"]}, "eos_token_id"),
    ({"bos_token_id": "<s>"}, "bos_token_id"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ({"rope_scaling": "linear"}, "rope_scaling"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor"),
    ({"rope_scaling": {"type": 3}}, "rope_scaling.type"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                       "original_max_position_embeddings": 8192}}, "high_freq_factor"),
    ({**PHI, "rope_scaling": {**LONG, "long_factor": [2.0] * 7}}, "long_factor"),
    ({**PHI, "rope_scaling": {**LONG, "short_factor": [1.0] * 7 + [-1.0]}}, "short_factor"),
    ({**PHI, "rope_scaling": LONG, "original_max_position_embeddings": ...}, "original_max_position_embeddings"),
    ({**PHI, "partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types"),
    ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ({"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), CORRUPT)
def test_contradictions_are_refused_by_name(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifact, match=words):
        spec_of(tmp_path, **changes)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["linear", "llama3", "longrope", "default", "yarn", "full_attention", "silu", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["factor", "rope_type"]), inner),
    max_leaves=4,
)  # fmt: skip
_NAMES = sorted(
    {*LLAMA, "head_dim", "rope_scaling", "rope_parameters", "rope_theta", "sliding_window", "layer_types", "n_inner",
     "partial_rotary_factor", "attention_bias", "mlp_bias", "text_config", "hidden_act", "hidden_activation",
     "query_pre_attn_scalar", "final_logit_softcapping", "max_window_layers", "use_sliding_window", "n_embd"}
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=st.sampled_from(archs.known()), changes=st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=3))
def test_any_config_gives_a_spec_or_a_typed_error(model: str, changes: dict[str, Any], tmp_path: Path) -> None:
    try:
        spec = spec_of(tmp_path, **{**changes, "model_type": model})
    except LoadError:
        return
    assert spec.parameters() > 0 and (spec.rope is None or np.isfinite(spec.rope.inverse_frequencies(context=99)).all())


_HF_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def folder_of(
    folder: Path, tensors: Mapping[str, np.ndarray | None] = MappingProxyType({}), prefix: str = "model."
) -> Path:
    """A Llama folder. tensors: by stored name with "/" for ".", added, replaced, or left out where None."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    stored: dict[str, np.ndarray | None] = {}
    for name, value in random_weights(TINY_SPECS["llama"]).items():
        stem = name.removesuffix(".weight")
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            stored[f"{prefix}layers.{layer}.{_HF_NAMES[part]}.weight"] = value
        else:
            stored[prefix + {"token_embd": "embed_tokens", "output_norm": "norm"}[stem] + ".weight"] = value
    stored |= {name.replace("/", "."): value for name, value in tensors.items()}
    save_file({name: value for name, value in stored.items() if value is not None}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_folder_without_torch(prefix: str, tmp_path: Path) -> None:
    frequencies = {f"{prefix}layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    checkpoint = open_checkpoint(folder_of(tmp_path / "model", frequencies, prefix))
    for name, value in random_weights(TINY_SPECS["llama"]).items():
        np.testing.assert_array_equal(checkpoint.tensors[name].read(), value)
    assert {file.name for file in checkpoint.files} == {"config.json", "model.safetensors"}


UP = "model/layers/1/mlp/up_proj/weight"


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({UP: None}, CorruptArtifact, r"layers\.1\.mlp\.up_proj.*missing"),
        ({"model/embed_tokens/weight": None}, CorruptArtifact, "embed_tokens"),
        ({UP: np.zeros((64, 96), np.float32)}, CorruptArtifact, r"up_proj.*\(64, 96\).*\(96, 64\)"),
        ({UP: np.zeros((96, 64), np.int8)}, UnsupportedArchitecture, "up_proj.*i8"),
        ({"model/layers/3/mlp/up_proj/weight": np.zeros((96, 64), np.float32)}, UnsupportedArchitecture, r"layers\.3"),
        ({"model/layers/0/self_attn/q_proj/bias": np.zeros(64, np.float32)}, UnsupportedArchitecture, "q_proj.bias"),
        ({"lm_head/weight": np.ones((256, 64), np.float32)}, CorruptArtifact, "lm_head.*embedding"),
        ({"lm_head/weight": np.ones((255, 64), np.float32)}, CorruptArtifact, "lm_head.*255"),
    ],
)
def test_every_tensor_is_accounted_for(
    tensors: dict[str, np.ndarray | None], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        open_checkpoint(folder_of(tmp_path / "model", tensors))


def test_a_tied_head_may_be_stored_too(tmp_path: Path) -> None:
    embedding = random_weights(TINY_SPECS["llama"])["token_embd.weight"]
    assert open_checkpoint(folder_of(tmp_path / "model", {"lm_head/weight": embedding})).spec.tied_head


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match="pickle"):
        open_checkpoint(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model")
    write_tokenizer(folder, 288)  # the embedding has 256 rows
    with pytest.raises(CorruptArtifact, match="tokens of the tokenizer is 288"):
        open_checkpoint(folder)
