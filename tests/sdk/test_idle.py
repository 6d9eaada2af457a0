"""Waiting costs nothing: a chat at its prompt, with both engines loaded and used, leaves the processor alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import wattwise
from wattwise_tui.plain import PlainChat
with wattwise.load("builtin", engine="onnx", threads=2) as other:
    with wattwise.load("builtin", engine="llamacpp", threads=2) as model:
        other.chat("Hello", max_tokens=8)
        PlainChat(model, options={"max_tokens": 8}).run()
"""
WATCHED_S = 5.0
SETTLED_S = 1.0  # spinning threads may take a moment to lie down


def processor_s(pid: int) -> float:
    """Seconds that all threads of a process have run so far (proc(5): schedstat counts nanoseconds)."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


@pytest.mark.slow
@pytest.mark.llama
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not tell threads' time")
def test_a_chat_waiting_for_input_uses_no_processor(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
    ) as chat:
        assert chat.stdin is not None and chat.stdout is not None
        try:
            chat.stdin.write("Hello\n")
            chat.stdin.flush()
            assert any(" tok · " in line for line in chat.stdout), "the reply's line of figures comes last"
            time.sleep(SETTLED_S)
            assert len(list(Path(f"/proc/{chat.pid}/task").iterdir())) > 2, "both engines' threads are there"
            before_s = processor_s(chat.pid)
            time.sleep(WATCHED_S)
            used_s = processor_s(chat.pid) - before_s
        finally:
            chat.kill()
    assert used_s <= 0.005 * WATCHED_S, f"{1e3 * used_s:.1f} ms of processor time in {WATCHED_S:.0f} idle seconds"


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param("llamacpp", marks=pytest.mark.llama), "onnx"])
def test_an_engines_threads_lie_down_between_steps(engine: str, tmp_path: Path) -> None:
    """A rest between tokens is a rest: threads that wait busily would burn what the rest was to save."""
    if engine == "llamacpp":
        pytest.importorskip("llama_cpp")
    script = f"""
import time, wattwise
from wattwise_runtimes.contracts import Batch
engine = wattwise.load("builtin", engine="{engine}", threads=2, context=256).engine
for _ in range(5):
    engine.forward(Batch([1]))
resting = []
for _ in range(40):
    engine.forward(Batch([1]))
    began = time.process_time()
    time.sleep(0.03)
    resting.append(time.process_time() - began)
print(1e3 * sorted(resting)[20])
"""
    environment = {name: text for name, text in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True, env=environment
    )
    resting_ms = float(done.stdout)
    assert resting_ms < 3.0, f"{resting_ms:.1f} ms of processor time in each rest of 30 ms"
