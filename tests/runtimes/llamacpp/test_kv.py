"""The KV store: element types, keys as policies see them, sliding windows, and what a restore accepts."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from support.llama_engines import WIDE, error, ids, load, logits, reference
from support.specs import TINY_SPECS
from wattwise_devices.errors import CorruptArtifact, PlanError
from wattwise_runtimes.contracts import Batch
from wattwise_runtimes.kv_blob import pack_rows

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.llama

# Largest logit error and largest key error, in standard deviations: about twice what the type's rounding gives.
TYPES = {
    "f32": (1e-4, 1e-4), "f16": (0.005, 0.005), "bf16": (0.02, 0.03), "q8_0": (0.06, 0.06), "q5_1": (0.4, 0.4),
    "q5_0": (0.4, 0.5), "q4_1": (0.8, 0.8), "q4_0": (0.8, 0.9), "iq4_nl": (0.8, 0.9),
}  # fmt: skip
ROW_BYTES = {"f32": 256, "f16": 128, "bf16": 128, "q8_0": 68, "q5_1": 48, "q5_0": 44, "q4_1": 40, "q4_0": 36}


@pytest.mark.parametrize("kv_type", TYPES)
def test_every_type_computes_shows_and_moves_its_rows(kv_type: str, tmp_path: Path) -> None:
    most, most_keys = TYPES[kv_type]
    tokens = ids(40)
    ref, engine = reference(WIDE), load(tmp_path, WIDE, kv_type=kv_type)
    assert error(logits(engine, tokens), logits(ref, tokens)) < most
    keys, want = engine.kv.view().keys, ref.kv.view().keys
    assert keys is not None and want is not None
    for layer in range(WIDE.layers):
        assert keys(layer).shape == want(layer).shape
        assert error(keys(layer), want(layer)) < most_keys
    rows = engine.kv.export()
    engine.kv.clear()
    engine.kv.restore(rows)
    assert engine.kv.export() == rows
    if kv_type in ROW_BYTES:
        assert engine.kv.nbytes == 256 * 2 * WIDE.layers * ROW_BYTES[kv_type]  # 256: cells are padded
    engine.close()


def test_a_type_whose_blocks_do_not_fit_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"q8_0.*16") as caught:
        load(tmp_path, TINY_SPECS["llama"], kv_type="q8_0")
    assert caught.value.clash == ("kv_type q8_0", "head size 16")
    with pytest.raises(PlanError, match="q3_0"):
        load(tmp_path, TINY_SPECS["llama"], kv_type="q3_0")


def test_rows_of_another_type_or_model_are_refused(tmp_path: Path) -> None:
    half, full = load(tmp_path, WIDE, kv_type="f16"), load(tmp_path, WIDE, kv_type="f32")
    half.forward(Batch(ids(9)))
    with pytest.raises(CorruptArtifact, match="kv_type"):
        full.kv.restore(half.kv.export())
    assert full.kv.length == 0
    half.close()
    full.close()


def test_a_forged_payload_with_a_good_checksum_never_reaches_native_code(tmp_path: Path) -> None:
    engine = load(tmp_path, WIDE)
    engine.forward(Batch(ids(6)))
    rows = engine.kv.export()
    (header_bytes,) = struct.unpack_from("<I", rows, 8)
    payload = rows[16 + header_bytes :]
    positions = engine.kv.positions
    engine.kv.clear()
    name = f"llamacpp {engine._native.version}"
    rng = np.random.default_rng(0)

    def forge(body: bytes, at: np.ndarray = positions) -> bytes:
        return pack_rows(engine=name, spec=WIDE, kv_type="f32", positions=at, payload=body)

    engine.kv.restore(forge(payload))  # the forger's tool works
    assert engine.kv.length == 6
    engine.kv.clear()
    structure = [*range(20), *range(88, 108)]  # counts, cells and the first layer's tag
    for at in structure:
        if 4 <= at < 8:  # the sequence number, which is not used
            continue
        damaged = bytearray(payload)
        damaged[at] ^= 1 << int(rng.integers(8))
        with pytest.raises(CorruptArtifact):
            engine.kv.restore(forge(bytes(damaged)))
    for cut in (0, 7, 15, 40, len(payload) - 1):
        with pytest.raises(CorruptArtifact):
            engine.kv.restore(forge(payload[:cut]))
    with pytest.raises(CorruptArtifact):
        engine.kv.restore(forge(payload + b"\0"))
    with pytest.raises(CorruptArtifact, match="positions"):
        engine.kv.restore(forge(payload, positions + 1))
    assert engine.kv.length == 0
    assert zlib.crc32(payload)  # the forged checksums were real ones
    engine.close()


def test_more_rows_than_fit_are_refused(tmp_path: Path) -> None:
    large, small = load(tmp_path, WIDE, context=64), load(tmp_path, WIDE, context=16)
    large.forward(Batch(ids(20)))
    with pytest.raises(CorruptArtifact, match="rows"):
        small.kv.restore(large.kv.export())
    small.kv.restore(large.kv.export(0, 16))
    assert small.kv.length == 16
    large.close()
    small.close()


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_sliding_layers_can_rewind_beyond_their_window(name: str, tmp_path: Path) -> None:
    spec = TINY_SPECS[name]
    tokens, other = ids(50), ids(12, seed=5)
    engine, ref = load(tmp_path, spec), reference(spec)
    engine.forward(Batch(tokens))
    engine.kv.truncate(10)  # 40 tokens back, the window is 8
    want = logits(ref, tokens[:10] + other)[10:]
    assert error(logits(engine, other), want) < 3e-3
    first, second = engine.kv.export(0, 15), engine.kv.export(15)
    engine.kv.truncate(0)
    engine.kv.restore(first)
    engine.kv.restore(second)
    assert engine.kv.next_position == 22
    assert error(logits(engine, [7, 8]), logits(ref, [7, 8])) < 3e-3
    engine.close()


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_sliding_layers_refuse_what_would_go_wrong(name: str, tmp_path: Path) -> None:
    engine = load(tmp_path, TINY_SPECS[name])
    assert (engine.capabilities.drop, engine.capabilities.keys) == ("none", False)
    engine.forward(Batch(ids(20)))
    with pytest.raises(PlanError, match="sliding"):
        engine.kv.drop([3])
    assert engine.kv.view().keys is None
    engine.close()
    with pytest.raises(PlanError, match="tree"):
        load(tmp_path, TINY_SPECS[name], tree_leaves=2)


def test_a_window_that_llama_cpp_lacks_bounds_the_context_and_the_positions(tmp_path: Path) -> None:
    spec = TINY_SPECS["mistral"]  # window 8
    engine = load(tmp_path, spec, context=8)
    tokens = ids(8)
    assert error(logits(engine, tokens), logits(reference(spec), tokens)) < 1e-3
    engine.kv.drop([1, 2, 3])
    with pytest.raises(ValueError, match="8"):  # room there is, but position 8 would need the window
        engine.forward(Batch([5]))
    engine.close()
    with pytest.raises(PlanError, match="window of 8"):
        load(tmp_path, spec, context=9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_any_sequence_of_operations_equals_the_reference(kv_type: str, seed: int, tmp_path: Path) -> None:
    """Random appends, rewinds, evictions, trees and moves between two engines, checked by logits at every step."""
    spec, rng = TINY_SPECS["llama"], np.random.default_rng(seed)
    ref = reference(spec, tree_leaves=4)
    engine, spare = (load(tmp_path, spec, kv_type=kv_type, tree_leaves=4) for _ in range(2))
    most = 1e-3 if kv_type == "f32" else 3e-2

    def both(act: str, *arguments: object) -> None:
        for kv in (engine.kv, ref.kv):
            getattr(kv, act)(*arguments)

    for step in range(60):
        held = ref.kv.positions
        room = ref.kv.capacity_tokens - len(held)
        choice = rng.choice(
            ["append", "truncate", "drop", "tree", "move", "clear"], p=[0.4, 0.15, 0.2, 0.1, 0.13, 0.02]
        )
        if choice == "append" and room > 4:
            n = int(rng.integers(1, min(room, 24)))
            batch = Batch(ids(n, seed=1000 * seed + step), logits="all")
            assert error(engine.forward(batch), ref.forward(batch)) < most
        elif choice == "truncate" and len(held) > 2:
            both("truncate", int(rng.integers(0, held[-1] + 3)))
        elif choice == "drop" and len(held) > 3:
            both("drop", rng.choice(held[:-1], int(rng.integers(1, len(held) - 1)), replace=False).tolist())
        elif choice == "tree" and room > 6:
            batch = Batch(ids(4, seed=step), parents=[-1, 0, 0, 2], logits="all")
            assert error(engine.forward(batch), ref.forward(batch)) < most
            both("accept", [[], [0], [0, 1], [0, 2, 3]][int(rng.integers(4))])
        elif choice == "move" and len(held):
            cut = int(held[rng.integers(len(held))])
            spare.kv.clear()
            for part in (engine.kv.export(0, cut), engine.kv.export(cut)):
                spare.kv.restore(part)
            engine, spare = spare, engine
        elif choice == "clear":
            both("clear")
        assert engine.kv.positions.tolist() == ref.kv.positions.tolist()
        assert engine.kv.next_position == ref.kv.next_position
    engine.close()
    spare.close()
