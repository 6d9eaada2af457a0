"""`wattwise convert SRC DST`: a model in one format from a model in another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from wattwise.cli import common
from wattwise.units import format_bytes, parse_bytes

HELP = "make a GGUF file or an ONNX folder from a Hugging Face folder, a GGUF file or a llama2.c checkpoint"


def arguments(parser: argparse.ArgumentParser) -> None:
    """SRC DST and the target type."""
    parser.add_argument("source", metavar="SRC", help="Hugging Face folder, .gguf file, or llama2.c .bin")
    parser.add_argument("destination", metavar="DST", help="a .gguf file, or a folder for ONNX")
    parser.add_argument("--to", choices=("gguf", "onnx"), help="by default what DST looks like")
    parser.add_argument(
        "--quant",
        metavar="NAME",
        help="GGUF: f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 q2_k ... q6_k iq4_nl ...; ONNX: fp32 fp16 int8 int4 int2",
    )
    parser.add_argument("--fit", metavar="SIZE", help="instead of --quant: the finest type whose file is at most SIZE")
    parser.add_argument("--block", type=int, metavar="N", help="ONNX: weights that share a scale: 32, 64 or 128")
    parser.add_argument("--certify", action="store_true", help="compare the result with its source on a text")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it is there")


def run(options: argparse.Namespace) -> int:
    """Convert with a progress bar."""
    result, chosen = _convert(options)
    if options.json:
        common.print_json(result.to_json())
        return 0
    print(f"{result.path}: {format_bytes(result.bytes)}" + (f" as {chosen}" if options.fit else ""))
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if result.certificate is not None:
        print(result.certificate)
    return 0


def _convert(options: argparse.Namespace) -> tuple[Any, str | None]:
    """The converter's result, and the type that was used."""
    from wattwise_convert.api import convert
    from wattwise_convert.fitting import convert_to_fit

    source, destination = Path(options.source), Path(options.destination)
    shared = {
        "to": options.to,
        "block": options.block,
        "certify": options.certify,
        "overwrite": options.overwrite,
        "on_progress": None if options.json else common.show_progress("converting"),
    }
    if options.fit is None:
        return convert(source, destination, quant=options.quant, **shared), options.quant
    if options.quant is not None:
        raise ValueError("--fit chooses the type, --quant names it: give one of them")
    return convert_to_fit(source, destination, parse_bytes(options.fit), **shared)
