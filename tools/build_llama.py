"""Builds and installs llama-cpp-python without its multimodal parts; see `--help`, `make llama` runs it.

The package comes as source only. A full build has 193 steps; the text engine needs 83 of them, in a couple of minutes.
The finished wheel is kept in the user's cache, under a key of everything that must match for it to run: version, build
flags, CPU features (a native build faults on a CPU that lacks one), interpreter and C library. Without a C++ compiler,
or when the build fails, this says so and succeeds, unless --require is given: the ONNX engine works without it.

Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SLIM_FLAGS = ("-DLLAVA_BUILD=OFF",)
# A plain -D of this option is overruled by the package's own cache entry; a variable set before the project is not.
SLIM_INCLUDE = "set(LLAMA_BUILD_COMMON OFF)\n"
JOB_BYTES = 1 << 30  # a compile job of llama.cpp's largest sources
SMOKE = f"""
import llama_cpp, llama_cpp.llama_cpp as api
api.llama_backend_init()
raise SystemExit(0 if llama_cpp.__version__ == {VERSION!r} else 3)
"""
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
WITHOUT = "continuing without the llama.cpp engine; the ONNX engine works"
_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")
_STAGES = {
    "Installing build dependencies": "fetching the build tools",
    "*** Configuring CMake": "configuring",
    "*** Installing project into wheel": "packing",
}
_ERRORS_SHOWN = 15


class BuildError(Exception):
    """The wheel could not be had; `log` holds everything the tools said."""

    def __init__(self, message: str, log: Path | None = None, tail: tuple[str, ...] = ()) -> None:
        self.log, self.tail = log, tail
        super().__init__(message)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 installed, or not possible but not required; 1 failed and required; 130 interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment to install into")
    parser.add_argument("--require", action="store_true", help="fail if the engine cannot be had")
    parser.add_argument("--jobs", type=int, default=0, help="compile jobs at once (default: as CPUs and memory allow)")
    arguments = parser.parse_args(argv)
    before = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        message = ensure(arguments.python, arguments.jobs or usable_jobs())
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was left behind", file=sys.stderr)
        return 130
    except BuildError as error:
        for line in error.tail:
            print("    " + line)
        print(f"llama.cpp: {error}")
        if error.log is not None:
            print(f"the full log is in {error.log}")
        if arguments.require:
            return 1
        print(WITHOUT)
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
    print(message)
    return 0


def ensure(python: str, jobs: int) -> str:
    """Make llama_cpp importable by that interpreter. Returns what was done, in words."""
    if works(python):
        return f"{PACKAGE} {VERSION} is installed"
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    remove_leftovers(cache)
    recipe = build_recipe(python)
    wheel = cached_wheel(cache, recipe)
    if wheel is not None:
        install(python, wheel)
        if works(python):
            return f"installed {PACKAGE} {VERSION} from {wheel}"
        print("the cached wheel does not work here; building it again")
        shutil.rmtree(wheel.parent, ignore_errors=True)
    missing = missing_tools()
    if missing:
        raise BuildError(f"no {missing} was found, so it cannot be built (on Debian: apt-get install g++)")
    started = time.monotonic()
    wheel = build(python, cache, recipe, jobs)
    print("installing it")
    install(python, wheel)
    if not works(python):
        shutil.rmtree(wheel.parent, ignore_errors=True)
        raise BuildError("it was built and installed, but cannot be imported")
    return f"built and installed {PACKAGE} {VERSION} in {_clock(time.monotonic() - started)}"


def works(python: str) -> bool:
    """Whether that interpreter can load the right version; a crash counts as no."""
    done = subprocess.run([python, "-c", SMOKE], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where finished wheels are kept."""
    base = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME") or Path.home()) / ".cache")
    return Path(base) / "wattwise" / "wheels"


def build_recipe(python: str, environment: Mapping[str, str] = os.environ) -> dict[str, object]:
    """Everything that a wheel depends on; equal recipes can share a wheel."""
    tag = "import sys, platform; print(sys.implementation.cache_tag, *platform.libc_ver())"
    interpreter = subprocess.run([python, "-c", tag], capture_output=True, text=True, check=True).stdout.strip()
    flags = ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CC", "CXX")
    return {
        "package": f"{PACKAGE}=={VERSION}",
        "flags": [*SLIM_FLAGS, SLIM_INCLUDE],
        "environment": {name: environment[name] for name in flags if environment.get(name)},
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_features(),
        "interpreter": interpreter,
    }


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The instruction sets of this CPU, sorted; where the system does not list them, the processor's name."""
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return sorted(set(value.split()))
    except OSError:
        pass
    return [platform.processor() or platform.machine()]


def recipe_key(recipe: Mapping[str, object]) -> str:
    """Short hash of a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:20]


def cached_wheel(cache: Path, recipe: Mapping[str, object]) -> Path | None:
    """A sound wheel for this recipe; a broken one is deleted."""
    folder = cache / recipe_key(recipe)
    for wheel in sorted(folder.glob("llama_cpp_python-*.whl")):
        if is_sound(wheel):
            return wheel
        print(f"the cached wheel {wheel} is damaged; building it again")
        shutil.rmtree(folder, ignore_errors=True)
    return None


def is_sound(wheel: Path) -> bool:
    """Whether every member of the archive has the checksum it should have, and the library is among them."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            has_library = any(Path(name).name.startswith("libllama.") for name in archive.namelist())
            return has_library and archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError):
        return False


def missing_tools(environment: Mapping[str, str] = os.environ) -> str:
    """The compiler that is missing, in words, or nothing. CMake and ninja come with pip where they are missing."""
    path = environment.get("PATH")
    if not any(shutil.which(name, path=path) for name in _candidates(environment.get("CC"), "cc", "gcc", "clang")):
        return "C compiler"
    if not any(shutil.which(name, path=path) for name in _candidates(environment.get("CXX"), "c++", "g++", "clang++")):
        return "C++ compiler"
    return ""


def _candidates(chosen: str | None, *usual: str) -> tuple[str, ...]:
    return (chosen.split()[0],) if chosen and chosen.split() else usual


def usable_jobs() -> int:
    """Compile jobs that this process's CPUs and the free memory allow."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota_file, period_file in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            words = Path(quota_file).read_text(encoding="ascii").split()
            period = Path(period_file).read_text(encoding="ascii").strip() if period_file else words[1]
            if words[0].isdigit() and int(words[0]) > 0:
                cpus = min(cpus, max(1, int(words[0]) // int(period)))
        except (OSError, IndexError, ValueError, ZeroDivisionError):
            continue
    return max(1, min(cpus, available_bytes() // JOB_BYTES))


def available_bytes(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that a build may take; 2 GiB where it cannot be known."""
    available = 2 << 30
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            limit = int((group / limit_name).read_text(encoding="ascii"))
            used = int((group / used_name).read_text(encoding="ascii"))
            available = min(available, max(0, limit - used))
    return available


def install(python: str, wheel: Path) -> None:
    """Install the wheel and what it needs, replacing whatever is there."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", str(wheel)]
    if CONSTRAINTS.exists():
        command += ["-c", str(CONSTRAINTS)]
    for extra in ([], ["--force-reinstall", "--no-deps"]):  # needs first, then the wheel itself, even over its like
        done = subprocess.run([*command, *extra], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            tail = tuple((done.stdout + done.stderr).strip().splitlines()[-_ERRORS_SHOWN:])
            raise BuildError("its wheel could not be installed", None, tail)


def build(python: str, cache: Path, recipe: Mapping[str, object], jobs: int) -> Path:
    """Build the wheel in a temporary folder beside the cache and move it in whole."""
    log = cache.parent / "build-llama.log"
    with temporary_folder(cache) as work:
        include = work / "slim.cmake"
        include.write_text(SLIM_INCLUDE, encoding="utf-8")
        environment = build_environment(include, jobs)
        command = [python, "-m", "pip", "--disable-pip-version-check", "wheel", "--verbose", "--no-deps"]
        command += ["--no-cache-dir", "--no-binary", PACKAGE, "--wheel-dir", str(work), f"{PACKAGE}=={VERSION}"]
        print(f"building {PACKAGE} {VERSION} with {jobs} job{'s' * (jobs > 1)}, a few minutes; the log is {log}")
        with Progress(sys.stdout) as progress, log.open("w", encoding="utf-8") as file:
            status, tail = run_logged(command, environment, file, progress.line)
        wheels = sorted(work.glob("llama_cpp_python-*.whl"))
        if status != 0 or not wheels:
            raise BuildError(f"the build failed (status {status})", log, tail)
        if not is_sound(wheels[0]):
            raise BuildError("the build made a damaged wheel", log, tail)
        (work / "recipe.json").write_text(json.dumps(recipe, indent=1, sort_keys=True), encoding="utf-8")
        return move_in(work, wheels[0], cache / recipe_key(recipe))


def build_environment(include: Path, jobs: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of pip and CMake: the caller's CMAKE_ARGS, then ours."""
    cmake = [environment.get("CMAKE_ARGS", ""), *SLIM_FLAGS, f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={include}"]
    return {
        **environment,
        "CMAKE_ARGS": " ".join(filter(None, cmake)),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
        "TMPDIR": str(include.parent),  # goes when that folder goes, also after an interrupt
        "PYTHONUNBUFFERED": "1",
    }


def move_in(work: Path, wheel: Path, folder: Path) -> Path:
    """Put the wheel and its recipe into the cache: first all of it under a temporary name, then one rename."""
    ready = work / "ready"
    ready.mkdir()
    for path in (wheel, work / "recipe.json"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.rename(ready / path.name)
    if folder.exists():
        shutil.rmtree(folder)
    ready.rename(folder)
    return folder / wheel.name


@contextlib.contextmanager
def temporary_folder(cache: Path) -> Iterator[Path]:
    """A folder on the cache's file system, named after this process, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f".build-{os.getpid()}-", dir=cache))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(cache: Path) -> None:
    """Delete the temporary folders of builds that were killed."""
    for folder in cache.glob(".build-*"):
        pid = folder.name.split("-")[1]
        if not pid.isdigit() or not _is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def run_logged(
    command: list[str], environment: Mapping[str, str], log: IO[str], on_line: Callable[[str], None]
) -> tuple[int, tuple[str, ...]]:
    """(exit status, last lines). The child has a session of its own; leaving by an exception ends all of it."""
    tail: deque[str] = deque(maxlen=_ERRORS_SHOWN)
    child = subprocess.Popen(
        command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        for line in child.stdout or ():
            log.write(line)
            if line.strip():
                tail.append(line.rstrip())
            on_line(line)
        return child.wait(), tuple(tail)
    except BaseException:
        _end_session(child)
        raise
    finally:
        if child.stdout:
            child.stdout.close()


def _end_session(child: subprocess.Popen[str]) -> None:
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, ending)
        try:
            child.wait(timeout=5)
            return
        except subprocess.TimeoutExpired:
            continue


class Progress:
    """Shows compile steps: one line that updates on a terminal, a line every ten percent elsewhere."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._started = out, time.monotonic()
        self._terminal = out.isatty()
        self._first_step: tuple[float, int] | None = None
        self._shown_tenth = -1
        self._width = 0
        self._last_stage = ""

    def __enter__(self) -> Progress:
        self._show("fetching the source (77 MB)")
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self._out.write("\n")

    def line(self, line: str) -> None:
        """Take one line of the build's output."""
        match = _STEP.match(line)
        if match is None:
            self._stage(line)
            return
        done, total = int(match[1]), int(match[2])
        if not 0 < done <= total or total < 10:  # CMake's own small tests number their steps too
            return
        now = time.monotonic()
        if self._first_step is None or done < self._first_step[1]:
            self._first_step, self._shown_tenth = (now, done), -1
        tenth = 10 * done // total
        if self._terminal or tenth > self._shown_tenth:
            self._shown_tenth = tenth
            self._show(f"compiling {done}/{total}, {_clock(now - self._started)} so far{self._left(done, total, now)}")

    def _stage(self, line: str) -> None:
        for mark, text in _STAGES.items():
            if mark in line and text != self._last_stage:
                self._last_stage = text
                self._show(text)

    def _left(self, done: int, total: int, now: float) -> str:
        first_at, first = self._first_step or (now, done)
        if done == total:
            return ""
        if done - first < 3:
            return ""
        return f", about {_clock((now - first_at) / (done - first) * (total - done))} left"

    def _show(self, text: str) -> None:
        if self._terminal:
            self._out.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._out.write(text + "\n")
        self._out.flush()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _as_interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
