"""The metadata of a GGUF file: general.*, the architecture's own keys, the tokenizer.

Keys and types are those that llama.cpp reads; `formats.gguf_llama` checks the written file against them.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from wattwise_convert.checkpoint import Checkpoint
from wattwise_convert.gguf.arch import Arch
from wattwise_runtimes.spec import ModelSpec, RopeSpec

_QUANTISATION_VERSION = 2  # GGML_QNT_VERSION
_PHI3_TOKENS = {"<s>", "</s>", "<unk>", "<|endoftext|>"}


def fields_for(checkpoint: Checkpoint, arch: Arch, file_type: int) -> dict[str, Any]:
    """Everything but the tensors."""
    spec = checkpoint.spec
    fields: dict[str, Any] = {
        "general.architecture": arch.name,
        "general.type": "model",
        "general.name": _name(checkpoint),
        "general.file_type": file_type,
        "general.quantization_version": _QUANTISATION_VERSION,
    }
    for key, value in {**_sizes(spec), **_norms(spec), **_window(arch, spec), **_rope(spec.rope)}.items():
        fields[f"{arch.name}.{key}"] = value
    fields.update(_tokenizer(checkpoint, arch))
    return fields


def _name(checkpoint: Checkpoint) -> str:
    """The model's name, changed where llama.cpp would fail on it.

    By the name alone (in any case) it takes a model for Phi-3 and then insists on four tokens of that vocabulary.
    """
    name = checkpoint.spec.name or checkpoint.origin.stem or "model"
    tokens = () if checkpoint.tokenizer is None else checkpoint.tokenizer.vocabulary.tokens
    if not set(tokens) >= _PHI3_TOKENS:
        name = re.sub(r"(?i)(phi)-?(3)", r"\1 \2", name)
    return name


def _sizes(spec: ModelSpec) -> dict[str, Any]:
    return {
        "block_count": spec.layers,
        "context_length": spec.context,
        "embedding_length": spec.hidden,
        "feed_forward_length": spec.ffn,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "vocab_size": spec.vocab,
    }


def _norms(spec: ModelSpec) -> dict[str, Any]:
    kind = "layer_norm_rms_epsilon" if spec.norm == "rms" else "layer_norm_epsilon"
    fields: dict[str, Any] = {f"attention.{kind}": float(spec.norm_eps)}
    if spec.attn_softcap is not None:
        fields["attn_logit_softcapping"] = float(spec.attn_softcap)
    if spec.final_softcap is not None:
        fields["final_logit_softcapping"] = float(spec.final_softcap)
    return fields


def _window(arch: Arch, spec: ModelSpec) -> dict[str, Any]:
    """Gemma's windows. For other architectures llama.cpp attends to everything; the key tells our engines."""
    window = spec.sliding_window
    if arch.name == "gemma2" and window is None:
        window = spec.context  # llama.cpp would assume 4096
    if window is None:
        return {}
    fields: dict[str, Any] = {"attention.sliding_window": window}
    if arch.name in ("gemma2", "gemma3"):
        slides = np.array([spec.is_sliding(i) for i in range(spec.layers)], dtype=np.bool_)
        fields["attention.sliding_window_pattern"] = slides
    return fields


def _rope(rope: RopeSpec | None) -> dict[str, Any]:
    if rope is None:
        return {}
    fields: dict[str, Any] = {"rope.dimension_count": rope.dims, "rope.freq_base": float(rope.base)}
    if rope.local_base is not None:
        fields["rope.freq_base_swa"] = float(rope.local_base)
    if rope.scaling == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}
    if rope.scaling == "longrope":
        fields["rope.scaling.type"] = "longrope"
        fields["rope.scaling.original_context_length"] = rope.original_context
        fields["rope.scaling.attn_factor"] = float(rope.attention_factor)
    return fields


def _tokenizer(checkpoint: Checkpoint, arch: Arch) -> dict[str, Any]:
    spec = checkpoint.spec
    if checkpoint.tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab", **_ids_only(spec)}
    from wattwise_runtimes.text.gguf_vocab import gguf_fields

    fields = gguf_fields(checkpoint.tokenizer.vocabulary, spec.vocab)
    if spec.chat_template is not None and "tokenizer.chat_template" not in fields:
        fields["tokenizer.chat_template"] = spec.chat_template
    known = {fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")}
    known.update(np.asarray(fields.get("wattwise.eog_ids", ()), np.int64).tolist())
    if not known.issuperset(spec.eos_ids):
        ends = {int(i) for i in known if i is not None} | set(spec.eos_ids)
        fields["wattwise.eog_ids"] = np.array(sorted(ends), np.int32)
    return fields


def _ids_only(spec: ModelSpec) -> dict[str, Any]:
    """Special ids of a model without a tokenizer; llama.cpp does not read them then, our readers do."""
    fields: dict[str, Any] = {"tokenizer.ggml.add_bos_token": spec.add_bos and spec.bos_id is not None}
    if spec.bos_id is not None:
        fields["tokenizer.ggml.bos_token_id"] = spec.bos_id
    if spec.eos_ids:
        fields["tokenizer.ggml.eos_token_id"] = spec.eos_ids[0]
    if len(spec.eos_ids) > 1:
        fields["wattwise.eog_ids"] = np.array(sorted(spec.eos_ids), np.int32)
    if spec.pad_id is not None:
        fields["tokenizer.ggml.padding_token_id"] = spec.pad_id
    if spec.chat_template is not None:
        fields["tokenizer.chat_template"] = spec.chat_template
    return fields
