"""Imports point down only: devices <- runtimes <- sdk <- tui, with convert beside the sdk. Walks every import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from support.data import ROOT

PACKAGES = {
    "wattwise_devices": "devices",
    "wattwise_runtimes": "runtimes",
    "wattwise": "sdk",
    "wattwise_tui": "tui",
    "wattwise_convert": "convert",
}
ALLOWED = {
    "wattwise_devices": set(),
    "wattwise_runtimes": {"wattwise_devices"},
    "wattwise": {"wattwise_devices", "wattwise_runtimes"},
    "wattwise_tui": {"wattwise", "wattwise_devices"},  # devices: for the error tree
    "wattwise_convert": {"wattwise_devices", "wattwise_runtimes"},
}
# The places that put the layers together; what each may reach, and only inside a function.
JOINTS = {
    "sdk/wattwise/cli/": {"wattwise_convert", "wattwise_tui"},
    "sdk/wattwise/lowering.py": {"wattwise_convert"},
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(top-level package, at module level) of every absolute import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)
    }
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            names = [node.module or ""]
        found += [(name.split(".")[0], id(node) not in inner) for name in names]
    return found


def sources() -> list[tuple[str, Path]]:
    return [(pkg, path) for pkg, folder in PACKAGES.items() for path in sorted((ROOT / folder / pkg).rglob("*.py"))]


def test_every_package_is_seen() -> None:
    assert {pkg for pkg, _ in sources()} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    wrong = []
    for pkg, path in sources():
        if pkg != package:
            continue
        name = path.relative_to(ROOT).as_posix()
        extra = next((allowed for place, allowed in JOINTS.items() if name.startswith(place)), set())
        for target, at_top in imports(path):
            if target not in PACKAGES or target == package or target in ALLOWED[package]:
                continue
            if target in extra and not at_top:
                continue
            wrong.append(f"{name} imports {target}")
    assert not wrong


HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "llama_cpp", "textual", "tokenizers", "jinja2", "gguf", "rich")


@pytest.mark.parametrize(
    "statement",
    [
        "import wattwise",
        "import wattwise_devices, wattwise_runtimes, wattwise_convert, wattwise_tui",
        "import wattwise.cli; wattwise.cli._parser()",
        "from wattwise_runtimes.registry import backend_names; backend_names()",
    ],
)
def test_importing_is_light(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_is_fast() -> None:
    code = "import time; a = time.process_time(); import wattwise; print(time.process_time() - a)"
    best = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    )
    assert best < 0.3, f"import wattwise took {best:.2f} s of CPU time"


def test_no_library_prints() -> None:
    """ruff's T20 covers this, but only where per-file ignores do not reach; the list of exceptions stays short."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert text.count('= ["T20"]') == 6
