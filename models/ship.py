"""Step 8: the exported folders as the files inside the package: the base, its draft, and a certificate of each.

    python -m models.ship --base HF_BASE --draft HF_DRAFT --out sdk/wattwise/builtin [--quant q8_0]

The converter of this repository does the work; the labels are added afterwards, every tensor's bytes copied as
they are, and the certificate measures the finished file against the exported folder. Both files are made and
checked beside the ones they replace, and only then take their places; `family.json` says what they are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gguf

from models.files import save_atomically, write_atomically
from wattwise_convert.api import convert
from wattwise_convert.certificate import Certificate, certificate_path, certify
from wattwise_convert.sources import open_checkpoint
from wattwise_runtimes.formats.gguf import read_gguf
from wattwise_runtimes.formats.gguf_spec import spec_from_gguf

MOST_BYTES = 32 * 2**20  # of both files together: the wheel has to stay small
LABELS = {
    "general.license": "cc-by-sa-4.0",
    "general.author": "the wattwise project",
    "general.description": "Small chat model trained from scratch for wattwise; sources and credits in CARD.md",
}
_FILES = {"builtin": "model.gguf", "builtin-draft": "draft.gguf"}
_STRUCTURAL = ("GGUF.", "general.architecture")  # the writer makes these itself


def label(source: Path, out: Path, labels: dict[str, str]) -> None:
    """A copy of a GGUF file with these texts among its metadata."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()

    def write(path: Path) -> None:
        writer = gguf.GGUFWriter(path, architecture)
        for name, field in reader.fields.items():
            if name.startswith(_STRUCTURAL) or name in labels:
                continue
            element = field.types[1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=element)
        for name, text in labels.items():
            writer.add_string(name, text)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    save_atomically(out, write)


def make(source: Path, out: Path, *, quant: str) -> Certificate:
    """The labelled file of an exported folder, and its certificate beside it."""
    name = json.loads((source / "config.json").read_text(encoding="utf-8"))["_name_or_path"]
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.gguf"
        notes = convert(source, plain, quant=quant).notes
        label(plain, out, {"general.name": name, **LABELS})
    return certify(open_checkpoint(source), out, "gguf", notes)


def ship(sources: dict[str, Path], out: Path, *, quant: str) -> dict[str, dict[str, object]]:
    """Put "builtin" and "builtin-draft" into the package's folder, all of it or nothing; what was written."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".shipping-", dir=out) as temporary:
        family: dict[str, dict[str, object]] = {}
        ready: list[Path] = []
        for model, source in sources.items():
            path = Path(temporary) / _FILES[model]
            certificate = make(source, path, quant=quant)
            if certificate.problems:
                raise SystemExit("\n".join(f"{path.name}: {problem}" for problem in certificate.problems))
            file = read_gguf(path)
            family[model] = {
                "name": file.fields["general.name"],
                "parameters": spec_from_gguf(file).parameters(),
                "bytes": path.stat().st_size,
                "quant": quant,
            }
            ready += [path, certificate_path(path, "gguf")]
        total = sum(path.stat().st_size for path in ready if path.suffix == ".gguf")
        if total > MOST_BYTES:
            raise SystemExit(f"both files together have {total:,} bytes; the package allows {MOST_BYTES:,}")
        for path in ready:
            path.replace(out / path.name)
    write_atomically(out / "family.json", (json.dumps(family, indent=1) + "\n").encode("utf-8"))
    return family


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder that models.export wrote from the base")
    parser.add_argument("--draft", type=Path, required=True, help="the same of the distilled draft")
    parser.add_argument("--out", type=Path, required=True, help="the package's folder of built-in models")
    parser.add_argument("--quant", default="q8_0")
    options = parser.parse_args(arguments)
    sources = {"builtin": options.base, "builtin-draft": options.draft}
    print(json.dumps(ship(sources, options.out, quant=options.quant), indent=1))


if __name__ == "__main__":
    main()
