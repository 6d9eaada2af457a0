"""Step 7: the exported folder as the GGUF file that ships, with its name and licence in it, and a certificate.

    python -m models.ship --data HF --out sdk/wattwise/builtin/model.gguf [--quant q8_0]

The converter of this repository does the work; the labels are added afterwards, every tensor's bytes copied as
they are, and the certificate measures the finished file against the exported folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import gguf

from models.files import save_atomically
from wattwise_convert.api import convert
from wattwise_convert.certificate import Certificate, certify
from wattwise_convert.sources import open_checkpoint

LABELS = {
    "general.name": "wattwise-tiny",
    "general.license": "apache-2.0",
    "general.author": "the wattwise project",
    "general.description": "Small chat model trained from scratch for wattwise; sources and credits in CARD.md",
}
_STRUCTURAL = ("GGUF.", "general.architecture")  # the writer makes these itself


def label(source: Path, out: Path, labels: dict[str, str]) -> None:
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


def ship(source: Path, out: Path, *, quant: str) -> Certificate:
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.gguf"
        notes = convert(source, plain, quant=quant).notes
        label(plain, out, LABELS)
    return certify(open_checkpoint(source), out, "gguf", notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that models.export wrote")
    parser.add_argument("--out", type=Path, required=True, help="GGUF file to write or replace")
    parser.add_argument("--quant", default="q8_0")
    options = parser.parse_args()
    certificate = ship(options.data, options.out, quant=options.quant)
    print(json.dumps(certificate.to_json()["logits"]))
    if certificate.problems:
        raise SystemExit("\n".join(certificate.problems))


if __name__ == "__main__":
    main()
