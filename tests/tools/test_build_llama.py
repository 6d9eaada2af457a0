"""The llama.cpp installer's decisions, against an interpreter and a pip that are made up: nothing is built."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from support.data import ROOT

SCRIPT = ROOT / "tools" / "build_llama.py"

# A python that knows `-c` smoke tests and `-m pip`; its state is files in its own folder.
FAKE_PYTHON = """#!{python}
import os, sys, time, zipfile
from pathlib import Path
here = Path(__file__).parent
def flag(name): return (here / name).exists()
args = sys.argv[1:]
if args[0] == "-c":
    if "cache_tag" in args[1]:
        print("cpython-311 glibc 2.36"); sys.exit(0)
    if (here / "installed").exists() and (here / "installed").read_text() == "bad":
        os.kill(os.getpid(), 4)  # as a native wheel on a CPU that lacks an instruction
    sys.exit(0 if flag("installed") else 1)
with (here / "calls").open("a") as f: f.write(args[3] if args[2].startswith("--") else args[2]); f.write("\\n")
if "install" in args:
    wheel = next(a for a in args if a.endswith(".whl"))
    library = zipfile.ZipFile(wheel).read("llama_cpp/lib/libllama.so")
    (here / "installed").write_text("bad" if b"bad" in library else "ok")
    sys.exit(0)
(here / "environment").write_text("\\n".join(k + "=" + v for k, v in os.environ.items()))
(here / "pid").write_text(str(os.getpid()))
for step in range(1, 84):
    print("   [%d/83] Building CXX object x.o" % step, flush=True)
    if flag("hang") and step == 40: time.sleep(60)
    if flag("fail") and step == 40:
        print("fatal error: no such file"); sys.exit(1)
out = Path(args[args.index("--wheel-dir") + 1])
with zipfile.ZipFile(out / "llama_cpp_python-0.3.36-py3-none-any.whl", "w") as z:
    z.writestr("llama_cpp/lib/libllama.so", "good" * 999)
"""


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_llama", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with the fake python, an empty cache, and fake compilers on PATH."""
    folder = tmp_path / "venv"
    folder.mkdir()
    python = folder / "python"
    python.write_text(FAKE_PYTHON.replace("{python}", sys.executable))
    python.chmod(0o755)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("cc", "c++"):
        (tools / name).write_text("#!/bin/sh\nexit 0\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("CC", "CXX", "CMAKE_ARGS"):
        monkeypatch.delenv(name, raising=False)
    return folder


def calls(fake: Path) -> list[str]:
    log = fake / "calls"
    return log.read_text().split() if log.exists() else []


def wheels(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache/wattwise/wheels").rglob("*.whl"))


def test_an_installed_package_is_left_alone(tool: ModuleType, fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fake / "installed").write_text("ok")
    assert tool.main(["--python", str(fake / "python")]) == 0
    assert calls(fake) == []
    assert "is installed" in capsys.readouterr().out


def test_without_a_compiler_it_says_so_and_goes_on(
    tool: ModuleType, fake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(fake))
    assert tool.main(["--python", str(fake / "python")]) == 0
    out = capsys.readouterr().out
    assert "compiler" in out
    assert "continuing without the llama.cpp engine; the ONNX engine works" in out
    assert tool.main(["--python", str(fake / "python"), "--require"]) == 1
    assert "continuing" not in capsys.readouterr().out
    assert calls(fake) == []


def test_a_build_is_slim_shown_and_kept_for_the_next_environment(
    tool: ModuleType, fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=OFF")
    assert tool.main(["--python", str(fake / "python"), "--jobs", "3"]) == 0
    out = capsys.readouterr().out
    assert "built and installed" in out
    shown = [line for line in out.splitlines() if line.startswith("compiling")]
    assert 10 <= len(shown) <= 12, "no terminal: a line every ten percent"
    assert shown[-1].startswith("compiling 83/83")
    environment = dict(line.split("=", 1) for line in (fake / "environment").read_text().splitlines() if "=" in line)
    assert environment["CMAKE_BUILD_PARALLEL_LEVEL"] == "3"
    assert Path(environment["TMPDIR"]).parent == tmp_path / "cache/wattwise/wheels"
    assert "-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE=" in environment["CMAKE_ARGS"]
    assert len(wheels(tmp_path)) == 1
    assert not list((tmp_path / "cache/wattwise/wheels").glob(".build-*"))

    (fake / "installed").unlink()
    before = calls(fake).count("wheel")
    assert tool.main(["--python", str(fake / "python")]) == 0
    assert calls(fake).count("wheel") == before, "the second environment gets the cached wheel"
    assert "from" in capsys.readouterr().out

    (fake / "installed").unlink()
    monkeypatch.setenv("CMAKE_ARGS", "")  # other flags: the cached wheel is not the right one
    assert tool.main(["--python", str(fake / "python")]) == 0
    assert calls(fake).count("wheel") == before + 1
    assert len(wheels(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_cached_wheel_is_built_again(tool: ModuleType, fake: Path, tmp_path: Path, damage: str) -> None:
    tool.main(["--python", str(fake / "python")])
    (wheel,) = wheels(tmp_path)
    data = bytearray(wheel.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[200] ^= 1  # inside the library's bytes: only its checksum tells
    else:
        data = bytearray()
    wheel.write_bytes(data)
    assert not tool.is_sound(wheel)
    (fake / "installed").unlink()
    assert tool.main(["--python", str(fake / "python")]) == 0
    assert calls(fake).count("wheel") == 2
    assert tool.is_sound(wheels(tmp_path)[0])


def test_a_cached_wheel_that_crashes_is_built_again(
    tool: ModuleType, fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool.main(["--python", str(fake / "python")])
    (wheel,) = wheels(tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llama_cpp/lib/libllama.so", "bad")
    (fake / "installed").unlink()
    assert tool.main(["--python", str(fake / "python")]) == 0
    assert "does not work here" in capsys.readouterr().out
    assert (fake / "installed").read_text() == "ok"


def test_a_failing_build_shows_its_end_and_leaves_no_wheel(
    tool: ModuleType, fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake / "fail").touch()
    assert tool.main(["--python", str(fake / "python")]) == 0
    out = capsys.readouterr().out
    log = tmp_path / "cache/wattwise/build-llama.log"
    assert "fatal error: no such file" in out and str(log) in out and "continuing without" in out
    assert "[40/83]" in log.read_text()
    assert wheels(tmp_path) == []
    assert tool.main(["--python", str(fake / "python"), "--require"]) == 1


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_build_and_leaves_nothing(fake: Path, tmp_path: Path, ending: signal.Signals) -> None:
    (fake / "hang").touch()
    command = [sys.executable, str(SCRIPT), "--python", str(fake / "python")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("compiling 3"):
                break
        child.send_signal(ending)
        assert child.wait(timeout=20) == 130
        assert "interrupted" in child.stdout.read()
    assert not list((tmp_path / "cache/wattwise/wheels").iterdir())
    builder = int((fake / "pid").read_text())
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{builder}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{builder}")


def test_leftovers_of_killed_builds_go_and_running_ones_stay(tool: ModuleType, tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as child:
        pass
    dead, alive = tmp_path / f".build-{child.pid}-abc", tmp_path / f".build-{os.getpid()}-abc"
    dead.mkdir()
    alive.mkdir()
    tool.remove_leftovers(tmp_path)
    assert not dead.exists() and alive.exists()


def test_the_recipe_tells_cpus_apart(tool: ModuleType, fake: Path, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: sse4_2 avx2 avx512f\n\nprocessor : 1\n")
    assert tool.cpu_features(cpuinfo) == ["avx2", "avx512f", "sse4_2"]
    assert tool.cpu_features(tmp_path / "missing")
    recipe = tool.build_recipe(str(fake / "python"), {})
    other = {**recipe, "cpu": ["avx2"]}
    assert tool.recipe_key(recipe) != tool.recipe_key(other)
    assert tool.recipe_key(recipe) == tool.recipe_key(dict(reversed(recipe.items())))
    assert tool.recipe_key(tool.build_recipe(str(fake / "python"), {"CC": "clang"})) != tool.recipe_key(recipe)


def test_memory_limits_the_jobs(tool: ModuleType, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000000 kB\nMemAvailable: 4000000 kB\n")
    assert tool.available_bytes(meminfo, tmp_path) == 4_000_000 * 1024
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("500000000\n")
    assert tool.available_bytes(meminfo, tmp_path) == 2_500_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert tool.available_bytes(meminfo, tmp_path) == 4_000_000 * 1024
    assert tool.usable_jobs() >= 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_updated_with_an_estimate(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(tool.time, "monotonic", lambda: clock[0])
    out = Terminal()
    with tool.Progress(out) as progress:
        progress.line("  *** Configuring CMake...\n")
        progress.line("[1/2] a test program of CMake's own\n")
        for step in range(1, 42):
            clock[0] += 2.0
            progress.line(f"  [{step}/83] Building\n")
        progress.line("no step at all\n")
    text = out.getvalue()
    assert text.count("\n") == 1
    assert "\rconfiguring" in text and "1/2" not in text
    last = text.rstrip("\n").split("\r")[-1]
    assert last.strip() == "compiling 41/83, 1:22 so far, about 1:24 left"
