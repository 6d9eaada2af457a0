"""How large keys and values get, by channel: the model writes a short text with its cache in float32, and we look.

The text is drawn at temperature 1 with a fixed seed, beginning (and after each end, beginning anew) with BOS; it needs
no data, and a model's own words are what it will be asked to remember. A quarter of the tokens are random ids in a
sequence of their own, because some models repeat themselves. Keys are measured by the length of each RoPE pair, which
is the same at every position; a channel alone would be larger at positions that were not reached.

What was measured is remembered in a file of the cache folder, by the graph's bytes and the data files' names, sizes and
times. A damaged file is made anew; one that cannot be written costs another measurement.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs

from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.onnx.engine import OnnxEngine
from wattwise_runtimes.engines.onnx.turning import pair_lengths
from wattwise_runtimes.formats.atomic import write_file_atomically
from wattwise_runtimes.formats.onnx_file import OnnxFolder
from wattwise_runtimes.spec import ModelSpec

TOKENS = 256
_RECIPE = "1"  # to be raised when the same model would give other figures
_SEED = 0
_REPORT_EVERY = 16  # tokens
_DIGEST_BYTES = 32
_MOST_FILES = 64  # the oldest go beyond that


def calibration_load(spec: ModelSpec, threads: int) -> LoadSpec:
    """How the model is loaded for the measurement."""
    return LoadSpec(context=min(TOKENS, spec.context), chunk=1, kv_type="f32", threads=threads)


def channel_maxima(
    folder: OnnxFolder, spec: ModelSpec, open_plain: Callable[[], OnnxEngine], report: Callable[[float], None]
) -> np.ndarray:
    """Largest magnitudes, float32 [layers, keys and values, kv_heads, head_dim]; remembered or measured.

    open_plain: loads the model as `calibration_load` says. report: told now and then which share of the text there is.
    """
    file = _cache_folder() / "kv_maxima" / f"{_key(folder)}.bin"
    shape = (spec.layers, 2, spec.kv_heads, spec.head_dim)
    maxima = _read(file, shape)
    if maxima is None:
        engine = open_plain()
        try:
            maxima = _measured(engine, spec, report)
        finally:
            engine.close()
        _write(file, maxima)
    return maxima


def _measured(engine: OnnxEngine, spec: ModelSpec, report: Callable[[float], None]) -> np.ndarray:
    rng, first, tokens = np.random.default_rng(_SEED), spec.bos_id or 0, engine.kv.capacity_tokens
    token = first
    for done in range(tokens - tokens // 4):
        if done % _REPORT_EVERY == 0:
            report(done / tokens)
        logits = engine.forward(Batch([token]))[0].astype(np.float64)
        drawn = int(np.argmax(logits + rng.gumbel(size=len(logits))))  # one draw from the softmax
        token = first if drawn in spec.eos_ids else drawn
    own = _largest(engine, spec)
    engine.kv.clear()
    engine.forward(Batch([first, *rng.integers(0, spec.vocab, tokens // 4)]))
    return np.maximum(own, _largest(engine, spec))


def _largest(engine: OnnxEngine, spec: ModelSpec) -> np.ndarray:
    """Of the rows held now, float32 [layers, keys and values, kv_heads, head_dim]."""
    n = engine.kv.length
    layers = [(pair_lengths(keys[0, :, :n], spec), np.abs(values[0, :, :n])) for keys, values in engine.kv.layers]
    return np.array([[part.max(axis=1) for part in layer] for layer in layers], np.float32)


def _key(folder: OnnxFolder) -> str:
    digest = hashlib.sha256(f"{_RECIPE}\n".encode())
    digest.update(folder.model_path.read_bytes())
    for file in folder.model.external_files:
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:24]


def _cache_folder() -> Path:
    """For things that can be made again; WATTWISE_HOME moves it."""
    home = os.environ.get("WATTWISE_HOME")
    return Path(home) / "cache" if home else Path(platformdirs.user_cache_dir("wattwise", appauthor=False))


def _read(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """What `_write` wrote: SHA-256 of the numbers, then the numbers. None where it is not there or damaged."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    digest, numbers = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(numbers).digest() != digest or len(numbers) != 4 * math.prod(shape):
        return None
    return np.frombuffer(numbers, "<f4").astype(np.float32).reshape(shape)


def _write(file: Path, maxima: np.ndarray) -> None:
    numbers = maxima.astype("<f4").tobytes()
    try:
        write_file_atomically(file, hashlib.sha256(numbers).digest() + numbers)
        by_age = sorted(file.parent.glob("*.bin"), key=lambda known: known.stat().st_mtime_ns)
        for oldest in by_age[:-_MOST_FILES]:
            oldest.unlink(missing_ok=True)
    except OSError:  # a read-only or full disk only costs another measurement
        return
