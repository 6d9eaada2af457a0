"""k- and i-quants by llama.cpp's quantiser in a child process, and what happens when that goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.checkpoints import tiny_checkpoint
from wattwise_convert import gguf
from wattwise_convert.gguf import libllama
from wattwise_convert.gguf.types import LLAMA_TYPES
from wattwise_convert.progress import Progress
from wattwise_convert.sources import open_checkpoint
from wattwise_devices.errors import BackendUnavailable, ConvertError
from wattwise_runtimes.formats.gguf import read_gguf
from wattwise_runtimes.formats.gguf_spec import quant_name
from wattwise_runtimes.spec import RopeSpec

pytestmark = pytest.mark.llama
WIDE = {
    "hidden": 256,
    "heads": 4,
    "head_dim": 64,
    "ffn": 256,
    "rope": RopeSpec(dims=64, base=1e6),
}  # k-quants have blocks of 256
COMMON = ("q2_k", "q4_k_m", "q6_k", "iq4_nl", "tq2_0")
LARGEST_ERROR = {"q2": 0.45, "q3": 0.25, "iq3": 0.25, "tq1": 0.9, "tq2": 0.9}


@pytest.fixture(autouse=True)
def _needs_llama() -> None:
    pytest.importorskip("llama_cpp")


@pytest.mark.parametrize(
    "quant", [pytest.param(q, marks=() if q in COMMON else (pytest.mark.slow,)) for q in LLAMA_TYPES]
)
def test_every_name_is_written_and_read_back(quant: str, tmp_path: Path) -> None:
    source = tiny_checkpoint("qwen3", layers=1, **WIDE)
    seen: list[float] = []
    result = gguf.export(source, tmp_path / "m.gguf", quant=quant, on_progress=seen.append)
    assert quant_name(read_gguf(result.path)) == quant
    written = open_checkpoint(result.path)
    name = "blk.0.ffn_up.weight"
    weight = source.tensors[name].read()
    error = np.sqrt(np.square(written.tensors[name].read() - weight).mean() / np.square(weight).mean())
    assert 0 < error < LARGEST_ERROR.get(quant.split("_")[0], 0.12)
    assert seen == sorted(seen)
    assert seen[-1] <= 1.0
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_rows_that_no_block_of_256_fits_are_said_so(tmp_path: Path) -> None:
    result = gguf.export(tiny_checkpoint("llama3"), tmp_path / "m.gguf", quant="q4_k_m")
    assert any("rows of 64 are no multiple of 256" in note for note in result.notes)


def test_a_refusal_of_llamacpp_is_an_error_with_its_reason(tmp_path: Path) -> None:
    dense = gguf.export(tiny_checkpoint(), tmp_path / "dense.gguf", quant="f32").path
    dense.write_bytes(dense.read_bytes()[:-1000])
    with pytest.raises(ConvertError, match="q4_k_m"):
        libllama.quantise(dense, tmp_path / "out.gguf", "q4_k_m", 1000, Progress(None))


def test_a_native_crash_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    popen = subprocess.Popen
    monkeypatch.setattr(libllama.subprocess, "Popen", lambda command, **options: popen(crash, **options))
    with pytest.raises(ConvertError, match="SIGSEGV"):
        gguf.export(tiny_checkpoint(), tmp_path / "m.gguf", quant="q4_k_m")
    assert list(tmp_path.iterdir()) == []


def test_without_llama_cpp_python_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libllama.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"wattwise\[llama\]"):
        gguf.export(tiny_checkpoint(), tmp_path / "m.gguf", quant="q4_k_m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the child's death signal is Linux's")
def test_killing_the_converter_ends_its_child(tmp_path: Path) -> None:
    script = (
        "import sys, subprocess; from support.checkpoints import tiny_checkpoint; from wattwise_convert import gguf\n"
        "gguf.export(tiny_checkpoint(), sys.argv[1], quant='q6_k')"
    )
    tests = str(Path(__file__).resolve().parents[1])
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "m.gguf")], env=_with_path(tests))
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    child = _wait_for(lambda: children.read_text().split() if parent.poll() is None else ["0"])[0]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _wait_for(lambda: not Path(f"/proc/{child}/exe").exists() or _is_zombie(child))
    if not (tmp_path / "m.gguf").exists():
        gguf.export(tiny_checkpoint(), tmp_path / "m.gguf", quant="q8_0")
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]  # what the dead one left is gone


def _is_zombie(pid: str) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def _wait_for(condition: Callable[[], object], seconds: float = 20.0) -> list[str]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found if isinstance(found, list) else []
        time.sleep(0.01)
    raise TimeoutError


def _with_path(folder: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])}
