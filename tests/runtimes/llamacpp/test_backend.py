"""Probing, loading and refusing; evidence instead of wishes; and silence on the terminal."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from support.llama_engines import WIDE, artifact, ids, load, load_spec
from support.specs import TINY_SPECS
from wattwise_devices.errors import CorruptArtifact, LoadError, PlanError
from wattwise_runtimes.contracts import Artifact, Batch
from wattwise_runtimes.engines.llamacpp import BACKEND
from wattwise_runtimes.engines.llamacpp.evidence import read_buffers, read_placements

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.llama

SPEC = TINY_SPECS["llama"]


def test_probe_tells_version_types_and_devices() -> None:
    found = BACKEND.probe()
    assert found is not None
    assert found.version.startswith("llama-cpp-python 0.")
    assert found.formats == ("gguf",)
    assert {"f16", "q8_0"} <= set(found.kv_types)
    assert "CPU" in found.devices


def test_importing_the_engine_loads_nothing_native() -> None:
    code = (
        "import sys; from wattwise_runtimes.engines.llamacpp import BACKEND\n"
        "heavy = {'llama_cpp', 'gguf', 'onnxruntime', 'onnx', 'torch'} & set(sys.modules); print(heavy or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"


def test_where_is_read_from_llama_cpp_itself(tmp_path: Path) -> None:
    spec = dataclasses.replace(WIDE, ffn=128)
    made = artifact(tmp_path, spec, "q4_0")
    engine = BACKEND.load(made, load_spec(kv_type="f16", threads=2))
    where = engine.where()
    assert (where["prefill"], where["decode"], where["flash_attention"]) == ("cpu", "cpu", "enabled")
    assert (where["threads"], where["threads_batch"]) == (2, 2)
    assert sum(where["weights_bytes"].values()) == engine.nbytes().weights
    assert "CPU" in where["system_info"]
    engine.close()
    exact = BACKEND.load(made, load_spec(kv_type="f32"))
    assert exact.where()["flash_attention"] == "disabled"
    exact.close()


def test_another_listener_of_the_same_library_does_not_take_our_evidence(tmp_path: Path) -> None:
    """An application may use llama-cpp-python beside us; its high-level class sets a listener of its own."""
    from wattwise_runtimes.engines.llamacpp.native import native

    theirs: list[bytes] = []
    callback = native().api.llama_log_callback(lambda level, text, data: theirs.append(text))
    native().api.llama_log_set(callback, None)
    engine = BACKEND.load(artifact(tmp_path, WIDE, "q8_0"), load_spec(kv_type="q8_0"))
    assert engine.nbytes().weights > 0
    assert engine.capabilities.shift
    engine.close()


def test_log_lines_are_understood() -> None:
    buffers = read_buffers(
        [
            "load_tensors:   CPU_REPACK model buffer size =   208.69 MiB",
            "load_tensors:          CPU model buffer size =    28.00 MiB",
            "llama_context:        CPU  output buffer size =     0.24 MiB",
            "llama_kv_cache:    Vulkan0 KV buffer size =     1.00 MiB",
            "llama_kv_cache:    Vulkan0 KV buffer size =     2.00 MiB",
            "sched_reserve:        CPU compute buffer size =     0.98 MiB",
            "something else = 3.00 MiB",
        ]
    )
    assert buffers.model == {"CPU_REPACK": round(208.69 * 2**20), "CPU": 28 << 20}
    assert buffers.kv == {"Vulkan0": 3 << 20}
    assert set(buffers.compute) == {"CPU"} and set(buffers.output) == {"CPU"}
    line = "tensor token_embd.weight (5 MiB q4_0) buffer type overridden to CPU_REPACK"
    assert read_placements([line, "tensor of another kind"]) == {("token_embd.weight", "CPU_REPACK")}


def test_progress_is_reported_and_can_stop(tmp_path: Path) -> None:
    made = artifact(tmp_path, SPEC)
    seen: list[float] = []
    BACKEND.load(made, load_spec(), seen.append).close()
    assert seen == sorted(seen) and seen[0] == 0.0 and seen[-1] > 0.9
    with pytest.raises(LoadError, match="stopped"):
        BACKEND.load(made, load_spec(), lambda done: done < 0.5)
    with pytest.raises(KeyboardInterrupt):
        BACKEND.load(made, load_spec(), _interrupt)
    BACKEND.load(made, load_spec()).close()


def _interrupt(done: float) -> None:
    if done > 0.3:
        raise KeyboardInterrupt


def test_a_damaged_file_is_refused_before_native_code_opens_it(tmp_path: Path) -> None:
    made = artifact(tmp_path, SPEC)
    made.path.write_bytes(made.path.read_bytes()[:-1000])
    for use in (BACKEND.load, BACKEND.estimate):
        with pytest.raises(CorruptArtifact):
            use(made, load_spec())


def test_a_sound_file_that_is_no_model_gives_llama_cpps_reason(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "empty.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made = Artifact(path=path, format="gguf", spec=SPEC, weights_bytes=0)
    for use in (BACKEND.load, BACKEND.estimate):
        with pytest.raises(LoadError, match=r"llama\.context_length"):
            use(made, load_spec())


def test_a_description_that_does_not_fit_the_file_is_refused(tmp_path: Path) -> None:
    made = artifact(tmp_path, SPEC)
    for wrong, word in (({"vocab": 300}, "300"), ({"layers": 5}, "5")):
        other = dataclasses.replace(made, spec=dataclasses.replace(SPEC, **wrong))
        with pytest.raises(LoadError, match=word):
            BACKEND.load(other, load_spec())


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"context": 0}, "context"), ({"chunk": 0}, "chunk"), ({"threads": 0}, "threads"), ({"threads_batch": 0}, "0"),
        ({"tree_leaves": 256}, "255"), ({"tree_leaves": -1}, "-1"), ({"kv_type": "int8"}, "int8"),
        ({"context": 2**32 + 5}, "context"), ({"threads": 600}, "512"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_honoured_are_refused_by_name(
    wrong: dict[str, object], word: str, tmp_path: Path
) -> None:
    made = artifact(tmp_path, SPEC)
    for use in (BACKEND.load, BACKEND.estimate):
        with pytest.raises(PlanError, match=word):
            use(made, load_spec(**wrong))
    with pytest.raises(LoadError, match="onnx"):
        BACKEND.load(dataclasses.replace(made, format="onnx"), load_spec())


@pytest.mark.parametrize("leaves", [1, 2, 40, 255])
def test_extreme_shapes_do_not_end_the_process(leaves: int, tmp_path: Path) -> None:
    """Small contexts and chunks with many sequences: combinations on which llama.cpp asserts."""
    for context, chunk in ((1, 1), (3, 600), (300, 1), (64, 16)):
        engine = load(tmp_path, SPEC, context=context, chunk=chunk, tree_leaves=leaves)
        engine.forward(Batch(ids(min(context - 1, 9) or 1)))
        if context > 12:
            wide = min(leaves, engine.capabilities.tree_tokens, context - 9)
            engine.forward(Batch(ids(wide), parents=[-1] * wide, logits="all"))
            engine.kv.accept([wide - 1])
            assert engine.kv.length == 10
        engine.close()


def test_nothing_native_reaches_the_terminal(tmp_path: Path) -> None:
    made = artifact(tmp_path, SPEC)
    code = f"""
from pathlib import Path
from support.llama_engines import load_spec
from support.specs import TINY_SPECS
from wattwise_runtimes.contracts import Artifact, Batch
from wattwise_runtimes.engines.llamacpp import BACKEND
spec = TINY_SPECS["llama"]
made = Artifact(path=Path({str(made.path)!r}), format="gguf", spec=spec, weights_bytes=0)
BACKEND.probe(); BACKEND.estimate(made, load_spec())
engine = BACKEND.load(made, load_spec())
engine.forward(Batch([3, 4, 5])); engine.kv.restore.__self__.clear()
leaked = BACKEND.load(made, load_spec())  # not closed: freed at exit
"""
    tests = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
