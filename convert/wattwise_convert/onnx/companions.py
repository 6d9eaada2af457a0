"""The small files beside model.onnx: genai_config.json, wattwise.json, and the tokenizer's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wattwise_convert.checkpoint import Checkpoint
from wattwise_runtimes.formats.onnx_spec import wattwise_record
from wattwise_runtimes.spec import ModelSpec
from wattwise_runtimes.text.tokenizer import Tokenizer

MODEL_NAME, DATA_NAME = "model.onnx", "model.onnx.data"
# Types that onnxruntime-genai's library knows; "decoder" is its name for any plain decoder.
_GENAI_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"})


def write_companions(checkpoint: Checkpoint, folder: Path, *, context: int, quant: str, version: str) -> None:
    """Write all of them into `folder`."""
    _write_json(folder / "genai_config.json", genai_config(checkpoint.spec, context))
    _write_json(folder / "wattwise.json", wattwise_record(checkpoint.spec, quant=quant, version=version))
    if checkpoint.tokenizer is not None:
        (folder / "tokenizer.json").write_text(checkpoint.tokenizer.to_json(), encoding="utf-8")
        _write_json(folder / "tokenizer_config.json", tokenizer_config(checkpoint.tokenizer))
    if checkpoint.spec.eos_ids:
        _write_json(folder / "generation_config.json", {"eos_token_id": list(checkpoint.spec.eos_ids)})


def genai_config(spec: ModelSpec, context: int) -> dict[str, Any]:
    """What onnxruntime-genai needs to run the graph of `lower.py`; its search settings are greedy and open-ended."""
    eos = list(spec.eos_ids) or [spec.bos_id or 0]
    bos = eos[0] if spec.bos_id is None else spec.bos_id
    return {
        "model": {
            "bos_token_id": bos,
            "context_length": context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL_NAME,
                "head_size": spec.head_dim,
                "hidden_size": spec.hidden,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": spec.heads,
                "num_hidden_layers": spec.layers,
                "num_key_value_heads": spec.kv_heads,
            },
            "eos_token_id": eos,
            "pad_token_id": eos[0] if spec.pad_id is None else spec.pad_id,
            "type": spec.architecture if spec.architecture in _GENAI_TYPES else "decoder",
            "vocab_size": spec.vocab,
        },
        "search": {
            "do_sample": False,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": True,
        },
    }


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json: special tokens by their text, and the chat template."""
    v = tokenizer.vocabulary
    # genai takes the class for the kind of model: byte-level BPE like GPT-2's, or SentencePiece like Llama's.
    config: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer" if v.model == "spm" else "GPT2Tokenizer",
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": v.add_eos,
        "clean_up_tokenization_spaces": False,
    }
    for name, token in (("bos", v.bos_id), ("eos", v.eos_id), ("unk", v.unk_id), ("pad", v.pad_id)):
        if token is not None:
            config[f"{name}_token"] = v.tokens[token]
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return config


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
