"""Predicted bytes against the peak of a real process that fills its whole context.

An engine answers for what comes on top of a warmed-up process, so that process is measured just before it loads.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.data import DATA, ROOT, needs_data
from support.llama_engines import WIDE, artifact, ids, load_spec
from support.specs import TINY_SPECS
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Artifact, Batch, LoadSpec
from wattwise_runtimes.engines.llamacpp import BACKEND, memory, params
from wattwise_runtimes.formats.gguf import read_gguf

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.llama

# Prints what it held when warm, its peak after it filled the context, and what the engine says it holds. On the way it
# looks at everything and moves rows, where it can.
RUN = """
import json, sys
from wattwise_devices.process_memory import resident_memory
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.llamacpp import BACKEND
load = LoadSpec(**json.loads(sys.argv[2]))
made = open_artifact(sys.argv[1])
later = BACKEND.warm_up()
warm = resident_memory().resident_bytes + later
engine = BACKEND.load(made, load)
vocab = engine.spec.vocab
engine.forward(Batch([(7 * i) % vocab for i in range(load.context - 8)]), lambda: False)  # in its thread
attention = engine.kv.view().attention
if attention is not None:
    for layer in range(engine.spec.layers):
        attention(layer)
for i in range(8):
    engine.forward(Batch([i % vocab]))
    if engine.capabilities.shift and i == 3:
        engine.kv.shift(20, load.context, 5)
assert engine.kv.length == load.context
peak = resident_memory().peak_bytes
print(json.dumps({"warm": warm, "peak": peak, "held": warm + engine.nbytes().total}))
"""


def measure(model: Path, load: LoadSpec) -> dict[str, int]:
    command = [sys.executable, "-c", RUN, str(model), json.dumps(dataclasses.asdict(load))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(made: Artifact, load: LoadSpec) -> None:
    plan = BACKEND.estimate(made, load)
    measured = measure(made.path, load)
    predicted = measured["warm"] + plan.total
    most = 0.10 if predicted < 100e6 else 0.05
    for name, total in (("predicted", predicted), ("held", measured["held"])):
        assert abs(total / measured["peak"] - 1) < most, (name, plan.to_json(), measured)
    assert predicted >= measured["peak"], "a budget of the predicted size must hold"


@pytest.fixture(scope="module")
def random_models() -> ModuleType:
    """The benchmarks' writer of random models."""
    spec = importlib.util.spec_from_file_location("benchmark_support", ROOT / "benchmarks" / "support.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quant", "load"),
    [
        ("q4_0", LoadSpec(context=256, chunk=128, threads=2)),
        ("q8_0", LoadSpec(context=300, chunk=256, kv_type="q8_0")),
        ("f16", LoadSpec(context=256, chunk=64, kv_type="f32")),
        ("q4_0", LoadSpec(context=2048, chunk=32, kv_type="q8_0")),
        ("q4_0", LoadSpec(context=256, chunk=128, attention_scores=True)),
        ("q8_0", LoadSpec(context=1024, chunk=64, attention_scores=True, threads=2)),
        ("q4_0", LoadSpec(context=488, chunk=32, kv_type="f32", attention_scores=True)),  # 15 whole chunks
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_prediction_holds_for_a_model_of_60_million(
    quant: str, load: LoadSpec, random_models: ModuleType, tmp_path: Path
) -> None:
    made = random_models.write_random_gguf(tmp_path / "model.gguf", random_models.SIZES["60M"], quant)
    check(made, load)


@needs_data
@pytest.mark.data
@pytest.mark.parametrize("quant", ["f16", "q8_0", "q4_0"])
def test_the_prediction_holds_for_a_real_model(quant: str, tmp_path: Path) -> None:
    from wattwise_convert.api import convert

    path = tmp_path / "model.gguf"
    convert(DATA / "models" / "stories3M-hf", path, quant=quant)
    check(open_artifact(path), LoadSpec(context=256, chunk=128))


def test_the_ledger_of_an_engine_is_the_ledger_of_its_plan(tmp_path: Path) -> None:
    spec = dataclasses.replace(WIDE, tied_head=True)
    for quant, kv_type in (("f32", "f32"), ("q4_0", "f16"), ("q8_0", "q4_0")):
        made, load = artifact(tmp_path, spec, quant), load_spec(kv_type=kv_type, context=300)
        planned = BACKEND.estimate(made, load)
        engine = BACKEND.load(made, load)
        engine.forward(Batch(ids(40)))
        held = engine.nbytes()
        engine.close()
        assert planned.kv == held.kv == 512 * 2 * spec.layers * params.kv_type(kv_type).nbytes(64)
        assert abs(planned.weights - held.weights) < 20_000  # llama.cpp's log has two decimals of a MiB
        assert abs(planned.compute - held.compute) < 20_000
        assert planned.weights >= made.weights_bytes - 10_000, "the file holds little but weights"


def test_a_repacked_tied_head_is_counted_twice(tmp_path: Path) -> None:
    tied = artifact(tmp_path, dataclasses.replace(WIDE, tied_head=True, vocab=4096), "q4_0")
    engine = BACKEND.load(tied, load_spec(kv_type="f16"))
    places = engine.where()["weights_bytes"]
    engine.close()
    head = 4096 * 128 // 32 * 18
    total = BACKEND.estimate(tied, load_spec(kv_type="f16")).weights
    body = sum(t.nbytes for t in read_gguf(tied.path).tensors.values())
    assert total == pytest.approx(body + (head if "CPU_REPACK" in places else 0), abs=4096)


def test_more_context_rows_and_trees_cost_what_they_cost(tmp_path: Path) -> None:
    made = artifact(tmp_path, TINY_SPECS["llama"])
    small, large = (BACKEND.estimate(made, load_spec(context=c)) for c in (256, 1024))
    assert large.kv == 4 * small.kv
    assert large.weights == small.weights
    assert BACKEND.estimate(made, load_spec(chunk=64)).compute > BACKEND.estimate(made, load_spec(chunk=8)).compute
    assert BACKEND.estimate(made, load_spec(tree_leaves=64)).compute > small.compute


def test_what_can_be_asked_for_later_is_counted(tmp_path: Path) -> None:
    made = artifact(tmp_path, WIDE)

    def compute(**options: object) -> int:
        return BACKEND.estimate(made, load_spec(chunk=32, **options)).compute

    long = {"context": 65536, "kv_type": "f16"}
    assert compute(**long, attention_scores=True) > 4 * WIDE.layers * WIDE.heads * 32 * 65536 + compute(**long)
    turned = 2 * 4 * 65536 * 64  # keys of a layer as float32, twice
    quantised = compute(context=65536, kv_type="q8_0")
    assert turned < quantised < turned + 20e6
    assert compute(context=65536, kv_type="bf16") < turned, "cannot be moved, so nothing is set aside"


def test_untouched_code_is_read_from_smaps(tmp_path: Path) -> None:
    smaps = tmp_path / "smaps"
    smaps.write_text(
        "7f00-7f01 r-xp 00000000 08:01 5 /x/llama_cpp/lib/libllama.so\nSize:   3000 kB\nRss:   1000 kB\n"
        "7f02-7f03 r-xp 00000000 08:01 5 /x/numpy/libother.so\nSize:   3000 kB\nRss:   0 kB\n"
        "7f04-7f05 r--p 00000000 08:01 5 /x/llama_cpp/lib/libggml.so\nSize:   8 kB\nRss:   8 kB\n7f06-7f07 rw-p 0 0 0\n"
    )
    assert memory.untouched_code_bytes(smaps) == 2000 * 1024
    assert memory.untouched_code_bytes(tmp_path / "none") == 0
