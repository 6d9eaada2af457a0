"""Step 1: read the sources into documents, drop doubles, set a held-out part aside.

    python -m models.data --data FOLDER --out PREPARED

writes `PREPARED/documents/<source>.{train,held}.jsonl` and `PREPARED/documents/sources.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from models.documents import Document, is_held_out
from models.files import write_atomically
from models.sources import Source, sources_in

HELD_PERMILLE = 25


def prepare_source(source: Source, path: Path, out: Path) -> dict[str, object]:
    """Write one source's two halves; what was kept, in numbers."""
    lines: dict[str, list[str]] = {"train": [], "held": []}
    sizes = {"train": 0, "held": 0}
    seen: set[str] = set()
    for document in source.read(path):
        text = document.rendered()
        if text in seen:
            continue
        seen.add(text)
        # A story and the request for it share their fate: the split goes by the longest piece of content.
        key = max((turn.content for turn in document.turns), key=len) if document.turns else document.text
        part = "held" if is_held_out(key, permille=HELD_PERMILLE) else "train"
        lines[part].append(json.dumps(document.to_json(), ensure_ascii=False))
        sizes[part] += len(text.encode("utf-8"))
    for part, rows in lines.items():
        write_atomically(out / f"{source.name}.{part}.jsonl", "".join(row + "\n" for row in rows).encode("utf-8"))
    return {
        "name": source.name,
        "licence": source.licence,
        "credit": source.credit,
        "documents": {part: len(rows) for part, rows in lines.items()},
        "bytes": sizes,
    }


def prepare(data: Path, out: Path) -> list[dict[str, object]]:
    folder = out / "documents"
    folder.mkdir(parents=True, exist_ok=True)
    summary = [prepare_source(source, path, folder) for source, path in sources_in(data)]
    write_atomically(folder / "sources.json", json.dumps(summary, indent=1).encode("utf-8"))
    return summary


def read_documents(out: Path, name: str, part: str) -> list[Document]:
    with (out / "documents" / f"{name}.{part}.jsonl").open(encoding="utf-8") as lines:
        return [Document.from_json(json.loads(line)) for line in lines]


def source_names(out: Path) -> list[str]:
    return [row["name"] for row in json.loads((out / "documents" / "sources.json").read_text(encoding="utf-8"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the sources, or with *.txt files")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything prepared")
    options = parser.parse_args()
    for row in prepare(options.data, options.out):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
