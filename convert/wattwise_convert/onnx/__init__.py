"""ONNX lowering: a Checkpoint becomes a folder that onnxruntime-genai and our own engine read.

    graph.py      a graph under construction        quantize.py   block quantisation by numpy
    data_file.py  the external data file            weights.py    how each weight is stored
    lower.py      the decoder graph                 companions.py the JSON files beside it
    folder.py     all of it, atomically

Needs the onnx package (protobuf only); it is imported when something is exported, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wattwise_convert.onnx.folder import ExportResult, export

__all__ = ["ExportResult", "export"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from wattwise_convert.onnx import folder

        return getattr(folder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
