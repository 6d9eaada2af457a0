"""Mutations of GGUF models at the level of their meaning: other values and types of fields, other tensors.

Byte mutations seldom leave a file sound; these always do, so they reach what llama.cpp makes of a model.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

from fuzz.tiny_gguf import BOOL, F32, I32, KIND, STR, U32, Draft
from wattwise_runtimes.formats.gguf import read_gguf

_INTEGERS = (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 127, 128, 256, 512, 513, 1024, 65536, 1 << 20,
             (1 << 31) - 1, 1 << 31, (1 << 32) - 1)  # fmt: skip
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-5, 1e-38, 1e-45, 0.5, 1e4, 1e38, float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", "llama", "gpt2", "none", "linear", "yarn", "longrope", "x" * 300, "a b", "\u2581", "<0x41>", "phi-3")
_OPTIONAL: dict[str, Any] = {
    "vocab_size": U32, "attention.key_length": U32, "attention.value_length": U32, "attention.sliding_window": U32,
    "attention.sliding_window_pattern": U32, "attention.scale": F32, "attn_logit_softcapping": F32,
    "final_logit_softcapping": F32, "rope.freq_base_swa": F32, "rope.scale_linear": F32, "rope.scaling.type": STR,
    "rope.scaling.factor": F32, "rope.scaling.attn_factor": F32, "rope.scaling.original_context_length": U32,
    "rope.scaling.finetuned": BOOL, "rope.scaling.yarn_log_multiplier": F32, "rope.scaling.yarn_ext_factor": F32,
    "rope.scaling.yarn_attn_factor": F32, "rope.scaling.yarn_beta_fast": F32, "rope.scaling.yarn_beta_slow": F32,
    "use_parallel_residual": BOOL, "tensor_data_layout": STR, "expert_count": U32, "expert_used_count": U32,
}  # fmt: skip
_NAMES = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight", "blk.0.attn_q.bias",
          "blk.0.attn_qkv.weight", "blk.0.attn_output.bias", "blk.0.ffn_up.bias", "output.bias")  # fmt: skip


def draft_of(path: Path) -> Draft:
    """An existing model of float32 tensors as a draft."""
    file = read_gguf(path)
    draft = Draft(tensors={name: file.read_rows(name) for name in file.tensors})
    for key, kind in file.field_types.items():
        value = file.fields[key]
        if kind.startswith("array["):
            items = value.tolist() if isinstance(value, np.ndarray) else value
            draft.fields[key] = (items, (KIND.ARRAY, KIND[kind[6:-1].upper()]))
        else:
            draft.fields[key] = (value, KIND[kind.upper()])
    return draft


def mutate_draft(draft: Draft, rng: random.Random) -> Draft:
    """One to three changes; the draft itself is changed and given back."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        choice = rng.random()
        if choice < 0.45:
            key = rng.choice(list(draft.fields))
            value, kind = draft.fields[key]
            draft.fields[key] = (_other_value(value, kind, rng), kind)
        elif choice < 0.55:
            name, kind = rng.choice(list(_OPTIONAL.items()))
            draft.fields[f"{_arch(draft)}.{name}"] = (_other_value(None, kind, rng), kind)
        elif choice < 0.6:
            draft.fields.pop(rng.choice(list(draft.fields)))
        elif choice < 0.65:
            key = rng.choice(list(draft.fields))
            kind = rng.choice((U32, F32, STR, I32, BOOL))
            draft.fields[key] = (_other_value(None, kind, rng), kind)
        else:
            _change_tensor(draft, rng)
    return draft


def _arch(draft: Draft) -> str:
    value = draft.fields.get("general.architecture", ("llama", STR))[0]
    return value if isinstance(value, str) else "llama"


def _other_value(value: Any, kind: Any, rng: random.Random) -> Any:
    if isinstance(kind, tuple):
        items = list(value)
        choice = rng.random()
        if choice < 0.6 and items:
            items[rng.randrange(len(items))] = _other_value(None, kind[1], rng)
        elif choice < 0.7:
            items = items[: rng.randrange(1, len(items) + 1)]
        elif choice < 0.8:
            items = [*items, *items[: rng.randrange(1, 5)]]
        else:
            rng.shuffle(items)
        return items
    if kind == STR:
        return rng.choice(_TEXTS)
    if kind == F32:
        return rng.choice(_FLOATS)
    if kind == BOOL:
        return rng.random() < 0.5
    number = rng.choice(_INTEGERS) if rng.random() < 0.7 or not isinstance(value, int) else value + rng.choice((-1, 1))
    return max(0, number) if kind in (U32, KIND.UINT64) else number - (1 << 31 if number >= 1 << 31 else 0)


def _change_tensor(draft: Draft, rng: random.Random) -> None:
    name = rng.choice(list(draft.tensors))
    value = draft.tensors[name]
    choice = rng.random()
    if choice < 0.1:
        del draft.tensors[name]
    elif isinstance(value, tuple):
        return
    elif choice < 0.25:
        draft.tensors[rng.choice(_NAMES)] = np.ones(rng.choice((1, 4, 8, 16, 32, 64, 128)), np.float32)
    elif choice < 0.55:
        dtype = rng.choice((np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64))
        draft.tensors[name] = np.clip(np.nan_to_num(value), -100, 100).astype(dtype)
    elif choice < 0.75:
        kind, block, size = rng.choice(
            ((8, 32, 34), (2, 32, 18), (3, 32, 20), (20, 32, 18), (39, 32, 17), (40, 64, 36))
        )
        if value.shape[-1] % block == 0:
            shape = (*value.shape[:-1], value.shape[-1] // block * size)
            blocks = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, shape, dtype=np.uint8)
            draft.tensors[name] = (blocks, GGMLQuantizationType(kind))
    elif choice < 0.85:
        draft.tensors[name] = np.full(value.shape, rng.choice((np.nan, np.inf, -np.inf, 1e38, 0.0)), np.float32)
    elif choice < 0.93:
        draft.tensors[name] = value.reshape(-1) if value.ndim == 2 else value[None]
    else:
        draft.tensors[name] = np.concatenate([value, value[: rng.randrange(1, 3)]])
