"""SHA-256 of a model's files, computed once: remembered under path, size and time of change, as `cost_cache` does.

A damaged or unwritable memory only costs reading the files again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from wattwise.paths import cache_dir
from wattwise.units import format_bytes
from wattwise_runtimes.formats.atomic import write_file_atomically

_BLOCK_BYTES = 64 << 10  # hashing must not show in the memory of a process with a budget
_WORTH_A_WORD_BYTES = 1 << 30
_MOST_ENTRIES = 2000  # the oldest half goes beyond that
_log = logging.getLogger("wattwise")


def content_hash(model: Path) -> str:
    """Of a file, or of all files below a folder and their names; hexadecimal. OSError for what cannot be read."""
    if not model.is_dir():
        return _remembered(model)
    whole = hashlib.sha256()
    for file in sorted(path for path in model.rglob("*") if path.is_file()):
        whole.update(f"{file.relative_to(model).as_posix()}\0{_remembered(file)}\n".encode())
    return whole.hexdigest()


def _remembered(file: Path) -> str:
    memory = cache_dir() / "hashes.json"
    stat = file.stat()
    key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    known = _read(memory)
    if key not in known:
        if stat.st_size >= _WORTH_A_WORD_BYTES:
            _log.info("hashing %s (%s), once", file, format_bytes(stat.st_size))
        digest = _hash(file)
        known = _read(memory)  # somebody else may have written meanwhile
        known[key] = digest
        _write(memory, known)
    return known[key]


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}


def _write(path: Path, known: dict[str, str]) -> None:
    if len(known) > _MOST_ENTRIES:
        known = dict(list(known.items())[len(known) // 2 :])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(path, json.dumps(known).encode())
    except OSError:  # a read-only or full disk only costs hashing again
        return
