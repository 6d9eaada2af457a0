"""Step 8: name, licence and authorship into a converted GGUF file; every tensor's bytes are copied as they are.

python -m models.label --data FILE.gguf --out FILE.gguf
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf

from models.files import save_atomically

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a converted file")
    parser.add_argument("--out", type=Path, required=True, help="where to write; may be the same file")
    options = parser.parse_args()
    label(options.data, options.out, LABELS)


if __name__ == "__main__":
    main()
