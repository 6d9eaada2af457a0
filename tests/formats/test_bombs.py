"""Small files that claim to be huge: refused at once, without the memory that they ask for."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from formats.raw_gguf import Raw, array, tensor, text, u32
from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.formats.gguf import read_gguf
from wattwise_runtimes.formats.json_file import read_json
from wattwise_runtimes.formats.onnx_file import read_onnx
from wattwise_runtimes.formats.safetensors import open_safetensors

GIB = 1 << 30


def _named(data: bytes, size: int) -> bytes:
    assert len(data) == size
    return data


BOMBS = {
    "gguf-43-bytes-count": ("gguf", _named(Raw([text("a" * 11)], field_count=(1 << 63) - 1).build(), 43)),
    "gguf-160-bytes-array": (
        "gguf",
        _named(Raw([u32("general.alignment", 32), array("tokens", 8, GIB, bytes(64))]).build().ljust(160, b"\0"), 160),
    ),
    "gguf-160-bytes-tensor": (
        "gguf",
        _named(Raw(tensors=[tensor("token_embd.weight", (1 << 31, 1 << 20))], data=bytes(160 - 96)).build(), 160),
    ),
    "gguf-string": ("gguf", Raw([text("k") + b"\x08\0\0\0" + text("v", 8 * GIB)]).build()),
    "safetensors-header": ("safetensors", (90_000_000).to_bytes(8, "little") + b"{}"),
    "safetensors-shape": (
        "safetensors",
        b"\x40" + bytes(7) + b'{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4]}} ' + bytes(4),
    ),
    "json-depth": ("json", b"[" * 100_000),
    "json-digits": ("json", b"1" * 200_000),
    "onnx-length": ("onnx", b"\x3a\xff\xff\xff\xff\x07"),
    "onnx-raw-data": ("onnx", bytes.fromhex("08093a1a2a18080108808080800808808080800810014a00")),
}  # fmt: skip
READERS = {"gguf": read_gguf, "safetensors": open_safetensors, "json": read_json, "onnx": read_onnx}


@pytest.mark.parametrize("name", BOMBS)
def test_refused_fast_and_small(tmp_path: Path, name: str) -> None:
    kind, data = BOMBS[name]
    path = tmp_path / f"bomb.{kind}"
    path.write_bytes(data)
    with pytest.raises(CorruptArtifact):
        READERS[kind](path)  # once before, for what is imported on first use
    tracemalloc.start()
    try:
        started = time.thread_time()
        with pytest.raises(CorruptArtifact):
            READERS[kind](path)
        seconds = time.thread_time() - started
        grown = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert grown < 1 << 20
    assert seconds < 0.05


@pytest.mark.parametrize("name", ["gguf-43-bytes-count", "gguf-160-bytes-array", "gguf-160-bytes-tensor"])
def test_the_process_does_not_grow(tmp_path: Path, name: str) -> None:
    """The same seen from outside Python's allocator: peak resident memory before and after, and wall time."""
    path = tmp_path / "bomb.gguf"
    path.write_bytes(BOMBS[name][1])
    script = (
        "import resource, sys, time\n"
        "from wattwise_runtimes.formats.gguf import read_gguf\n"
        "from wattwise_devices.errors import CorruptArtifact\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "started = time.perf_counter()\n"
        "try:\n    read_gguf(sys.argv[1])\nexcept CorruptArtifact: pass\nelse: sys.exit('accepted')\n"
        "seconds = time.perf_counter() - started\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, seconds)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    grown_kib, seconds = map(float, done.stdout.split())
    assert grown_kib < 1024
    assert seconds < 0.05
