"""Prints the longest files and functions of the packages: the tail is what makes a code base hard to hold.

It informs; it gates nothing.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("sdk", "convert", "runtimes", "tui", "devices")
SHOWN = 15


def main() -> None:
    files: list[tuple[int, str]] = []
    functions: list[tuple[int, str]] = []
    for path in sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(ROOT))
        files.append((text.count("\n"), name))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                functions.append((lines, f"{name}:{node.lineno} {node.name}"))
    print(f"{len(files)} files, {sum(n for n, _ in files)} lines, {len(functions)} functions")
    for title, rows in (("longest files", files), ("longest functions", functions)):
        print(f"\n{title}")
        for lines, name in sorted(rows, reverse=True)[:SHOWN]:
            print(f"{lines:6}  {name}")


if __name__ == "__main__":
    main()
