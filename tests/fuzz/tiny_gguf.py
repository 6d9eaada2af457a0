"""Tiny GGUF models written with the `gguf` package: seeds for fuzzing and material for the refusal tests.

A model is a `Draft`: metadata and tensors in plain dictionaries that a test changes before it is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

KIND = gguf.GGUFValueType
U32, F32, STR, I32, BOOL = KIND.UINT32, KIND.FLOAT32, KIND.STRING, KIND.INT32, KIND.BOOL


@dataclass
class Draft:
    """fields: key -> (value, type), for an array ((value, ...), (ARRAY, item type)). tensors: name -> array, or
    (bytes as uint8 rows, quantisation type)."""

    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)

    def set(self, key: str, value: Any, kind: Any = None) -> Draft:
        """Change a field, keeping its type unless one is given."""
        self.fields[key] = (value, kind if kind is not None else self.fields[key][1])
        return self

    def write(self, path: Path) -> Path:
        """Write the model; fields and tensors in their order."""
        writer = gguf.GGUFWriter(path, "none")
        writer.kv_data[0].clear()
        for key, (value, kind) in self.fields.items():
            if isinstance(kind, tuple):
                writer.add_key_value(key, list(value), KIND.ARRAY, sub_type=kind[1])
            else:
                writer.add_key_value(key, value, kind)
        for name, tensor in self.tensors.items():
            data, raw_type = tensor if isinstance(tensor, tuple) else (tensor, None)
            writer.add_tensor(name, data, raw_dtype=raw_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def spm_vocab(size: int) -> dict[str, tuple[Any, Any]]:
    """A SentencePiece vocabulary: three control tokens, the bytes that fit, then made-up words."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(min(256, size - 3))]
    tokens += [f"\u2581w{i}" for i in range(size - len(tokens))]
    kinds = [2, 3, 3] + [6 if t.startswith("<0x") else 1 for t in tokens[3:]]
    return {
        "tokenizer.ggml.model": ("llama", STR),
        "tokenizer.ggml.tokens": (tokens, (KIND.ARRAY, STR)),
        "tokenizer.ggml.scores": ([-float(i) for i in range(size)], (KIND.ARRAY, F32)),
        "tokenizer.ggml.token_type": (kinds, (KIND.ARRAY, I32)),
        "tokenizer.ggml.bos_token_id": (1, U32),
        "tokenizer.ggml.eos_token_id": (2, U32),
        "tokenizer.ggml.unknown_token_id": (0, U32),
        "tokenizer.ggml.add_bos_token": (True, BOOL),
    }


def bpe_vocab(size: int) -> dict[str, tuple[Any, Any]]:
    """A byte-level BPE vocabulary of letters and pairs of them."""
    letters = [*map(chr, range(33, min(127, 33 + size // 2))), "\u0120", "\u010a"]
    pairs = [a + b for a in letters for b in letters][: size - len(letters) - 1]
    tokens = [*letters, *pairs, "<|endoftext|>"]
    return {
        "tokenizer.ggml.model": ("gpt2", STR),
        "tokenizer.ggml.pre": ("gpt-2", STR),
        "tokenizer.ggml.tokens": (tokens, (KIND.ARRAY, STR)),
        "tokenizer.ggml.token_type": ([1] * (len(tokens) - 1) + [3], (KIND.ARRAY, I32)),
        "tokenizer.ggml.merges": ([f"{p[0]} {p[1]}" for p in pairs], (KIND.ARRAY, STR)),
        "tokenizer.ggml.bos_token_id": (len(tokens) - 1, U32),
        "tokenizer.ggml.eos_token_id": (len(tokens) - 1, U32),
    }


def llama_model(
    *, vocab: int = 64, hidden: int = 32, layers: int = 1, heads: int = 4, kv_heads: int = 2, ffn: int = 32
) -> Draft:
    """A random llama model with a SentencePiece vocabulary that llama.cpp loads and runs."""
    rng = np.random.default_rng(0)
    head = hidden // heads

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

    draft = Draft()
    draft.fields |= {
        "general.architecture": ("llama", STR),
        "general.name": ("tiny", STR),
        "llama.block_count": (layers, U32),
        "llama.context_length": (64, U32),
        "llama.embedding_length": (hidden, U32),
        "llama.feed_forward_length": (ffn, U32),
        "llama.attention.head_count": (heads, U32),
        "llama.attention.head_count_kv": (kv_heads, U32),
        "llama.attention.layer_norm_rms_epsilon": (1e-5, F32),
        "llama.rope.dimension_count": (head, U32),
        "llama.rope.freq_base": (10000.0, F32),
    } | spm_vocab(vocab)
    draft.tensors["token_embd.weight"] = matrix(vocab, hidden)
    for i in range(layers):
        block = f"blk.{i}."
        draft.tensors |= {
            block + "attn_norm.weight": np.ones(hidden, np.float32),
            block + "attn_q.weight": matrix(hidden, hidden),
            block + "attn_k.weight": matrix(kv_heads * head, hidden),
            block + "attn_v.weight": matrix(kv_heads * head, hidden),
            block + "attn_output.weight": matrix(hidden, hidden),
            block + "ffn_norm.weight": np.ones(hidden, np.float32),
            block + "ffn_gate.weight": matrix(ffn, hidden),
            block + "ffn_up.weight": matrix(ffn, hidden),
            block + "ffn_down.weight": matrix(hidden, ffn),
        }
    draft.tensors["output_norm.weight"] = np.ones(hidden, np.float32)
    draft.tensors["output.weight"] = matrix(vocab, hidden)
    return draft
