"""Exported folders: every architecture and weight type, files, refusals, memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.onnx_folders import memory_checkpoint, write_onnx_folder
from support.specs import TINY_SPECS, random_weights
from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_convert.onnx import export
from wattwise_convert.onnx.quantize import dequantize_rows, quantize_rows
from wattwise_devices.errors import ConvertError
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.onnx import BACKEND
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.spec import ModelSpec

LOAD = LoadSpec(context=64, kv_type="f32")
BITS = {"int8": 8, "int4": 4, "int2": 2}


def logits_of(folder: Path, ids: list[int]) -> np.ndarray:
    engine = BACKEND.load(open_artifact(folder), LOAD)
    logits = engine.forward(Batch(ids, logits="all")).copy()
    engine.close()
    return logits


def rounded_like_the_folder(
    spec: ModelSpec, weights: dict[str, np.ndarray], quant: str, head_bits: int, zero_points: bool
) -> dict[str, np.ndarray]:
    """The weights that the folder should hold, in float32."""
    out = dict(weights)
    for name, value in weights.items():
        if value.ndim != 2:
            continue
        bits = head_bits if name in ("token_embd.weight", "output.weight") else BITS.get(quant, 16)
        if quant == "fp16" or (name == "position_embd.weight" and quant in BITS):
            out[name] = value.astype(np.float16).astype(np.float32)
        else:
            packed = quantize_rows(value, bits=bits, block=32, zero_points=zero_points)
            out[name] = dequantize_rows(packed, value.shape[1])
    return out


@pytest.mark.parametrize("name", TINY_SPECS)
@pytest.mark.parametrize(
    ("quant", "zero_points", "tolerance"),
    # float16 is stored exactly; int8 activations inside the kernels cost about a percent per layer
    [("fp16", False, 1e-4), ("int8", False, 0.2), ("int4", False, 0.2), ("int4", True, 0.2), ("int2", False, 0.2)],
)
def test_folder_computes_with_the_rounded_weights(
    name: str, quant: str, zero_points: bool, tolerance: float, tmp_path: Path
) -> None:
    spec = TINY_SPECS[name]
    weights = random_weights(spec)
    ids = [int(i) for i in np.random.default_rng(2).integers(3, spec.vocab, 24)]
    got = logits_of(write_onnx_folder(tmp_path / "m", spec, weights, quant=quant, zero_points=zero_points), ids)
    rounded = rounded_like_the_folder(spec, weights, quant, 8, zero_points)
    want = ReferenceEngine(spec, rounded, LOAD).forward(Batch(ids, logits="all"))
    error = np.abs(got - want)
    assert error.max() < tolerance * want.std()
    assert np.sqrt(np.square(error).mean()) < 0.25 * tolerance * want.std()
    if quant != "fp16":  # and the rounding itself is felt, so that the comparison means something
        plain = ReferenceEngine(spec, weights, LOAD).forward(Batch(ids, logits="all"))
        assert np.abs(plain - want).max() > 0.01 * want.std()


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    spec = dataclasses.replace(TINY_SPECS["llama"], layers=1, vocab=4096)
    sizes = {}
    for tied in (True, False):
        one = dataclasses.replace(spec, tied_head=tied)
        for quant in ("fp32", "int8"):
            folder = write_onnx_folder(tmp_path / f"{tied}-{quant}", one, random_weights(one), quant=quant)
            sizes[tied, quant] = (folder / "model.onnx.data").stat().st_size
    assert sizes[False, "fp32"] - sizes[True, "fp32"] == 4096 * 64 * 4
    # codes of one byte, two float32 scales a row: the scales end on page borders
    assert abs(sizes[False, "int8"] - sizes[True, "int8"] - 4096 * (64 + 2 * 4)) <= 4096


def test_large_tensors_lie_outside_on_page_borders(tmp_path: Path) -> None:
    spec = TINY_SPECS["qwen3"]
    folder = write_onnx_folder(tmp_path / "m", spec, random_weights(spec), quant="int4")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert len(external) > 20
    for tensor in external:
        entry = {e.key: e.value for e in tensor.external_data}
        assert entry["location"] == "model.onnx.data"
        assert int(entry["offset"]) % 4096 == 0
    assert (folder / "model.onnx").stat().st_size < 64 << 10
    levels = {
        a.i for n in model.graph.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "accuracy_level"
    }
    assert levels == {4}


def test_a_width_that_is_no_multiple_of_the_block_is_noted(tmp_path: Path) -> None:
    spec = dataclasses.replace(TINY_SPECS["llama"], hidden=72, ffn=172)
    weights = random_weights(spec)
    result = export(memory_checkpoint(spec, weights), tmp_path / "m", quant="int8")
    assert any("72" in note and "float16" in note for note in result.notes)
    ids = list(range(3, 20))
    want = ReferenceEngine(spec, weights, LOAD).forward(Batch(ids, logits="all"))
    assert np.abs(logits_of(tmp_path / "m", ids) - want).max() < 0.3 * want.std()


def test_longrope_takes_its_factors_by_the_engines_context(tmp_path: Path) -> None:
    spec = TINY_SPECS["phi4-mini"]
    weights = random_weights(spec)
    folder = write_onnx_folder(tmp_path / "m", spec, weights)
    ids = [int(i) for i in np.random.default_rng(5).integers(3, spec.vocab, 20)]
    seen = []
    for context in (32, 33):  # the original context, and one more
        load = LoadSpec(context=context, kv_type="f32")
        engine = BACKEND.load(open_artifact(folder), load)
        got = engine.forward(Batch(ids, logits="all")).copy()
        want = ReferenceEngine(spec, weights, load).forward(Batch(ids, logits="all"))
        assert np.abs(got - want).max() < 1e-4 * want.std()
        seen.append(got)
    assert np.abs(seen[0] - seen[1]).max() > 0.01


def test_genai_config_describes_the_graph(tmp_path: Path) -> None:
    spec = TINY_SPECS["mistral"]
    folder = write_onnx_folder(tmp_path / "m", spec, random_weights(spec), context=128)
    config = json.loads((folder / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    assert config["model"]["context_length"] == 128
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (3, 2, 16)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    names = {v.name for v in model.graph.input}
    assert {decoder["inputs"]["past_key_names"] % i for i in range(3)} <= names
    assert {"input_ids", "attention_mask", "position_ids"} <= names


@pytest.mark.parametrize(
    ("options", "named"),
    [({"quant": "int3"}, "int3"), ({"quant": "int4", "block": 48}, "48"), ({"quant": "int2", "block": 256}, "256"),
     ({"quant": "int2", "block": 16}, "16"), ({"quant": "int4", "head_bits": 5}, "head_bits")],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(options: dict, named: str, tmp_path: Path) -> None:
    spec = TINY_SPECS["llama"]
    with pytest.raises(ConvertError, match=named):
        export(memory_checkpoint(spec, random_weights(spec)), tmp_path / "m", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_head_size_without_a_kernel_is_refused(tmp_path: Path) -> None:
    base = TINY_SPECS["qwen3"]
    assert base.rope is not None
    spec = dataclasses.replace(base, head_dim=20, rope=dataclasses.replace(base.rope, dims=20))
    with pytest.raises(ConvertError, match="20"):
        export(memory_checkpoint(spec, random_weights(spec)), tmp_path / "m")


def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    spec = TINY_SPECS["llama"]
    shares: list[float] = []

    def stop_half_way(share: float) -> bool:
        shares.append(share)
        return share < 0.5

    with pytest.raises(ConvertError, match="stopped"):
        export(memory_checkpoint(spec, random_weights(spec)), tmp_path / "m", on_progress=stop_half_way)
    assert list(tmp_path.iterdir()) == []
    assert shares == sorted(shares)
    assert 0.5 <= shares[-1] <= 1


def test_an_existing_folder_is_not_replaced_unasked(tmp_path: Path) -> None:
    spec = TINY_SPECS["llama"]
    checkpoint = memory_checkpoint(spec, random_weights(spec))
    export(checkpoint, tmp_path / "m", quant="fp32")
    before = (tmp_path / "m" / "model.onnx").read_bytes()
    with pytest.raises(FileExistsError):
        export(checkpoint, tmp_path / "m", quant="int8")
    assert (tmp_path / "m" / "model.onnx").read_bytes() == before
    export(checkpoint, tmp_path / "m", quant="int8", overwrite=True)
    assert (tmp_path / "m" / "model.onnx").read_bytes() != before


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, wattwise_convert.onnx; print([m for m in ('onnx', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _export_large(target: str) -> None:
    """In a child process: 320 MB of float32 weights drawn row by row, one tensor of 128 MB. Prints the peak in KiB."""
    spec = dataclasses.replace(TINY_SPECS["llama"], hidden=1024, ffn=4096, vocab=32768, layers=3, head_dim=256)
    assert spec.rope is not None
    spec = dataclasses.replace(spec, rope=dataclasses.replace(spec.rope, dims=256))

    def source(name: str, shape: tuple[int, ...]) -> TensorSource:
        def rows(start: int, stop: int) -> np.ndarray:
            rng = np.random.default_rng([zlib.crc32(name.encode()), start])
            return rng.standard_normal((stop - start, *shape[1:]), dtype=np.float32)

        return TensorSource(name, shape, "f32", rows)

    tensors = {name: source(name, shape) for name, shape in spec.tensor_shapes().items()}
    checkpoint = Checkpoint(spec=spec, tensors=tensors, tokenizer=None, origin=Path("random"))
    for quant in ("fp32", "int4"):
        export(checkpoint, Path(target) / quant, quant=quant)
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_below_the_bound(tmp_path: Path) -> None:
    code = f"""
import importlib.util, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
spec = importlib.util.spec_from_file_location("export_child", {__file__!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
module._export_large({str(tmp_path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    largest_bytes = 32768 * 1024 * 4
    assert int(done.stdout) * 1024 < 1.5 * largest_bytes + (300 << 20)


@pytest.mark.parametrize(("quant", "value", "named"), [("int4", np.nan, "row 7"), ("fp32", np.inf, "row 7"),
                                                       ("fp16", 1e5, "float16")])  # fmt: skip
def test_weights_without_a_value_are_refused(quant: str, value: float, named: str, tmp_path: Path) -> None:
    spec = TINY_SPECS["llama"]
    weights = random_weights(spec)
    weights["blk.1.ffn_up.weight"][7, 3] = value
    with pytest.raises(ConvertError, match=f"blk.1.ffn_up.weight.*{named}"):
        export(memory_checkpoint(spec, weights), tmp_path / "m", quant=quant)
    assert list(tmp_path.iterdir()) == []
