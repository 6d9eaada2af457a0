"""llama2.c checkpoints: against the same models as Hugging Face folders, and against files written here."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest

from support.data import DATA, needs_data
from support.specs import TINY_SPECS, random_weights
from wattwise_convert.sources import open_checkpoint
from wattwise_devices.errors import CorruptArtifact

SPEC = dataclasses.replace(TINY_SPECS["llama"], tied_head=True)


@needs_data
def test_stories260k_is_its_hugging_face_folder() -> None:
    ours = open_checkpoint(DATA / "models" / "stories260K" / "stories260K.bin")
    theirs = open_checkpoint(DATA / "models" / "stories260K-hf")
    assert dataclasses.replace(ours.spec, name=theirs.spec.name) == theirs.spec
    assert set(ours.tensors) == set(theirs.tensors)
    for name, tensor in ours.tensors.items():
        np.testing.assert_array_equal(tensor.read(), theirs.tensors[name].read(), err_msg=name)
    assert ours.tokenizer is not None and theirs.tokenizer is not None
    text = "Once upon a time, Lily's café had 3 cats."
    assert ours.tokenizer.encode(text, bos=True) == theirs.tokenizer.encode(text, bos=True)


@needs_data
def test_stories3m_is_its_hugging_face_folder_before_rounding_to_f16() -> None:
    ours = open_checkpoint(DATA / "models" / "stories3M" / "stories3M-q80.bin")
    theirs = open_checkpoint(DATA / "models" / "stories3M-hf")
    assert dataclasses.replace(ours.spec, name=theirs.spec.name) == theirs.spec
    for name, tensor in ours.tensors.items():
        rounded = tensor.read().astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(rounded, theirs.tensors[name].read(), err_msg=name)


def _write(path: Path, version: int, weights: dict[str, np.ndarray], *, tied: bool = True) -> Path:
    """A checkpoint as llama2.c's exporter lays it out; rows of q and k must be in its own order already."""
    s = SPEC
    numbers = struct.pack("<7i", s.hidden, s.ffn, s.layers, s.heads, s.kv_heads, s.vocab, s.context)
    norms = [f"blk.{i}.{n}.weight" for n in ("attn_norm", "ffn_norm") for i in range(s.layers)]

    def per_layer(*parts: str) -> list[str]:
        return [f"blk.{i}.{part}.weight" for part in parts for i in range(s.layers)]

    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up")
    if version == 0:
        head = struct.pack("<5i", s.hidden, s.ffn, s.layers, s.heads, s.kv_heads)
        head += struct.pack("<2i", s.vocab if tied else -s.vocab, s.context)
        order = ["token_embd.weight", *per_layer("attn_norm", *matrices[:4], "ffn_norm", *matrices[4:])]
        order += ["output_norm.weight", ""] + ([] if tied else ["output.weight"])
    else:
        head = struct.pack("<Ii", 0x616B3432, version) + numbers + struct.pack("<B", tied)
        head = (head + (struct.pack("<i", 32) if version == 2 else b"")).ljust(256, b"\0")
        order = [*norms, "output_norm.weight", "token_embd.weight", *per_layer(*matrices)]
        order += [] if tied else ["output.weight"]
    tables = np.full(s.context * s.head_dim, np.nan, np.float32)  # unused: must never be read
    data = [head]
    for name in order:
        value = weights[name] if name else tables
        if version == 2 and "norm" not in name:
            groups = value.reshape(-1, 32)
            scale = np.abs(groups).max(axis=1, keepdims=True) / 127
            data += [np.round(groups / scale).astype(np.int8).tobytes(), scale.astype("<f4").tobytes()]
        else:
            data.append(value.astype("<f4").tobytes())
    path.write_bytes(b"".join(data))
    return path


def _paired(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """q and k with half-split rows reordered into adjacent pairs."""
    out = dict(weights)
    for name, value in weights.items():
        if ".attn_q." in name or ".attn_k." in name:
            heads = value.reshape(-1, 2, SPEC.head_dim // 2, value.shape[1])
            out[name] = heads.swapaxes(1, 2).reshape(value.shape)
    return out


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_every_version_reads_back(version: int, tied: bool, tmp_path: Path) -> None:
    weights = random_weights(dataclasses.replace(SPEC, tied_head=tied))
    checkpoint = open_checkpoint(_write(tmp_path / "m.bin", version, _paired(weights), tied=tied))
    assert checkpoint.spec.tied_head is tied
    assert checkpoint.spec.eos_ids == (2, 1)
    assert checkpoint.tokenizer is None
    assert set(checkpoint.tensors) == set(weights)
    for name, value in weights.items():
        tensor = checkpoint.tensors[name]
        limit = np.abs(value).max() / 127 / 2 * 1.001 if tensor.dtype == "q8 groups" else 0
        assert np.abs(tensor.read() - value).max() <= limit, name
        np.testing.assert_array_equal(tensor.read(3, 21), tensor.read()[3:21], err_msg=name)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_hostile_files_are_refused(version: int, tmp_path: Path) -> None:
    good = _write(tmp_path / "m.bin", version, random_weights(SPEC)).read_bytes()
    at = 0 if version == 0 else 8
    bad = {
        "size": [good[:-4], good + b"\0", good[:40], good[:3], b""],
        "dim": [good[:at] + struct.pack("<i", v) + good[at + 4 :] for v in (0, -1, 1 << 30)],
        "n_layers": [good[: at + 8] + struct.pack("<i", v) + good[at + 12 :] for v in (0, 1 << 30)],
        "n_heads": [good[: at + 12] + struct.pack("<i", v) + good[at + 16 :] for v in (3, 0)],
    }
    if version:
        bad["version"] = [good[:4] + struct.pack("<i", 3) + good[8:]]
    if version == 2:
        bad["group size"] = [good[:37] + struct.pack("<i", v) + good[41:] for v in (0, -32, 7)]
    for cases in bad.values():
        for data in cases:
            (tmp_path / "m.bin").write_bytes(data)
            with pytest.raises(CorruptArtifact):
                open_checkpoint(tmp_path / "m.bin")
