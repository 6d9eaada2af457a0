"""GGUF lowering: a Checkpoint becomes one file that llama.cpp and our own engines read.

arch.py      what llama.cpp computes per architecture   lower.py     tensors as it wants them
fields.py    metadata                                   types.py     which type each tensor gets
quantize.py  the simple block types by numpy            writer.py    the file, row block by row block
libllama.py  k- and i-quants, in a child process        file.py      all of it, atomically
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wattwise_convert.gguf.file import ExportResult, export

__all__ = ["ExportResult", "export"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from wattwise_convert.gguf import file

        return getattr(file, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
