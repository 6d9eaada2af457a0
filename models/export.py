"""Step 7: a checkpoint as a Hugging Face folder that any Llama reader opens.

    python -m models.export --data RUN --out FOLDER [--dtype f16|f32] [--name NAME]

Writes config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json, and
recipe.json: the config and the effort of the training. The head is tied, so there is no `lm_head.weight`.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer

from models.configuration import ModelShape, shape_from_dict
from models.documents import CHAT_TEMPLATE, DOCUMENT_END, TURN_END, TURN_START
from models.files import write_atomically
from models.model import Llama
from models.train import CHECKPOINT

CONTROLS = (DOCUMENT_END, TURN_START, TURN_END)  # never part of a shown text
_DTYPES = {"f16": (np.float16, "F16", "float16"), "f32": (np.float32, "F32", "float32")}


def load_weights(run: Path) -> tuple[ModelShape, dict[str, torch.Tensor]]:
    state = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    return shape_from_dict(state["shape"]), state["model"]


def load_model(run: Path) -> Llama:
    """The run's model, in torch."""
    shape, weights = load_weights(run)
    model = Llama(shape)
    model.load_state_dict(weights)
    return model


def end_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    found = (tokenizer.token_to_id(text) for text in (TURN_END, DOCUMENT_END))
    return frozenset(token for token in found if token is not None)


def safetensors_bytes(tensors: dict[str, np.ndarray], dtype_name: str) -> bytes:
    """The file format: a length, a JSON header, then the tensors one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": dtype_name, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(tensor.tobytes() for tensor in tensors.values())


def model_config(shape: ModelShape, tokenizer: Tokenizer, torch_dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_base,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": torch_dtype,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(TURN_END),
        "pad_token_id": tokenizer.token_to_id(DOCUMENT_END),
    }


def tokenizer_files(tokenizer: Tokenizer, shape: ModelShape) -> tuple[str, dict[str, Any]]:
    """tokenizer.json with its special tokens marked as such, and tokenizer_config.json.

    The marks of a tool call are tokens but not special: a reader sees them in the reply and finds the call.
    """
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROLS])
    described = json.loads(tokenizer.to_str())
    for token in described["added_tokens"]:
        token["special"] = token["content"] in CONTROLS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": DOCUMENT_END,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.positions,
        "additional_special_tokens": [TURN_START],
        "chat_template": CHAT_TEMPLATE,
    }
    return json.dumps(described, indent=2, ensure_ascii=False), config


def export(run: Path, out: Path, *, dtype: str, name: str) -> None:
    shape, weights = load_weights(run)
    numpy_dtype, tensor_dtype, torch_dtype = _DTYPES[dtype]
    tensors = {f"model.{key}": value.float().numpy().astype(numpy_dtype) for key, value in weights.items()}
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    tokenizer_json, tokenizer_config = tokenizer_files(tokenizer, shape)
    generation = {
        "eos_token_id": [tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(DOCUMENT_END)],
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
    }
    config = {"_name_or_path": name, **model_config(shape, tokenizer, torch_dtype)}
    recipe = {"name": name, **training_effort(run), "config": json.loads((run / "config.json").read_text("utf-8"))}
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "model.safetensors", safetensors_bytes(tensors, tensor_dtype))
    write_atomically(out / "tokenizer.json", tokenizer_json.encode("utf-8"))
    for file, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config),
        ("recipe.json", recipe),
    ):
        write_atomically(out / file, json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8"))


def training_effort(run: Path) -> dict[str, float]:
    """Tokens read and seconds spent."""
    state = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    return {"tokens": state["tokens"], "seconds": round(state["seconds"], 1)}


def run_name(run: Path) -> str:
    """The name that the run's config gives the model."""
    return json.loads((run / "config.json").read_text(encoding="utf-8"))["name"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="run folder of models.train")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dtype", choices=sorted(_DTYPES), default="f16")
    parser.add_argument("--name", help="default: the config's")
    options = parser.parse_args(arguments)
    export(options.data, options.out, dtype=options.dtype, name=options.name or run_name(options.data))


if __name__ == "__main__":
    main()
