"""Tiny random Hugging Face checkpoints made by transformers, and transformers' own logits for them.

The independent reference of the converter: nothing here comes from wattwise. Needs the `[reference]` extra (torch and
transformers, imported on use). Weights are drawn so that logits have a standard deviation near 1; transformers'
default initialisation is so small that a wrong layer would hardly show.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")

VOCAB = 288
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 257,
    "pad_token_id": None,
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    "head_dim": 24, "query_pre_attn_scalar": 20, "sliding_window": 8, "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip

# key -> (config class, what differs from _SIZES)
ARCHS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-bias": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-llama3": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    ),
    "llama-linear": (
        "LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}}
    ),
    "smollm": ("LlamaConfig", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "hidden_size": 96,
                               "num_attention_heads": 6, "num_key_value_heads": 2}),
    "mistral": ("MistralConfig", {"sliding_window": 8, "head_dim": 24}),
    "mistral-full": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default",
                                                                                "rope_theta": 1e6}}),
    "qwen3": ("Qwen3Config", {"head_dim": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "gemma2": ("Gemma2Config", {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3_text": (
        "Gemma3TextConfig",
        {**_GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "rope_parameters": {
             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
         }},
    ),
    "phi3": ("Phi3Config", {"sliding_window": 8}),
    "phi4-mini": (
        "Phi3Config",
        {"tie_word_embeddings": True, "original_max_position_embeddings": 64, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 64,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 16.0]}},
    ),
    "gpt2": ("GPT2Config", {}),
}  # fmt: skip


def make_hf_folder(arch_key: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a checkpoint folder: config, safetensors, tokenizer. changes: further settings of its config."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    class_name, differs = ARCHS[arch_key]
    settings = _SIZES | differs | changes
    if class_name == "GPT2Config":
        settings = _for_gpt2(settings)
    config = getattr(transformers, class_name)(**settings)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    _draw(model, torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_tokenizer(folder, config.vocab_size)
    return folder


def hf_logits(folder: Path, ids: Sequence[int]) -> np.ndarray:
    """Logits of every position by transformers: float32 [n, vocab], fp32 weights, plain attention."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0].numpy()


def _for_gpt2(settings: dict[str, Any]) -> dict[str, Any]:
    names = {
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
    }  # fmt: skip
    return {names.get(k, k): v for k, v in settings.items() if k != "num_key_value_heads"}


def _draw(model: Any, generator: Any) -> None:
    """Fresh weights: matrices keep the scale of what goes through them, norms and biases are off their defaults."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                is_bias = name.endswith("bias")
                centre = weight.clone() if not is_bias else torch.zeros_like(weight)
                weight.copy_(centre + 0.2 * noise)
                continue
            conv = name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))  # GPT-2 stores [in, out]
            fan_in = weight.shape[0] if conv else weight.shape[1]
            weight.copy_(noise / fan_in**0.5)
            if "wpe" in name:
                weight.mul_(2)


def write_tokenizer(folder: Path, size: int) -> None:
    """A byte-level BPE: 256 bytes, <s> and </s>, then merges until `size` tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(alphabet)}
    vocab["<s>"], vocab["</s>"] = 256, 257
    merges: list[tuple[str, str]] = []
    for left in "Ġabcdefghi":
        for right in "etaoinshr":
            if len(vocab) < size and left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", pair=None, special_tokens=[("<s>", 256)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True,
        "chat_template": "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
