"""Going on with a saved session in a new process, against reading its text again.

    python benchmarks/session_resume.py [--size 400M] [--tokens 1500] [--rounds 5] [--engines llamacpp,onnx]

A random model holds a conversation of 1,500 tokens in five turns, each saved as it ends. New processes then go on with
20 more tokens: by reading all 1,520, by resuming with the files in the page cache, and with them dropped from it. Times
are from the loaded model to the first token's logits, which must be bit by bit what the first process computes.
Bars: the same bits, and a first token at least 14 times as soon. `--size tiny` only shows that it runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from support import SIZES, model_folder, write_random_gguf
from wattwise.planning import Plan
from wattwise.prefix import NO_TOKENS, HeldPrefix
from wattwise.sessions.library import Library
from wattwise.sessions.rows import ModelRows
from wattwise_devices.bandwidth import read_bandwidth
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Artifact, Batch, Engine, Ledger
from wattwise_runtimes.registry import get_backend
from wattwise_runtimes.spec import ModelSpec, RopeSpec

TINY = ModelSpec(
    architecture="llama", layers=2, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=256, vocab=1000, context=2048,
    rope=RopeSpec(dims=32), name="random-tiny",
)  # fmt: skip
TURNS, NEXT, DECODED = 5, 20, 10  # turns, tokens of the turn that goes on, tokens of each turn read one by one
SESSION = "0123456789ab"
WAYS = ("read again", "resumed, cached", "resumed, from disk")


def make_model(engine: str, size: str, folder: Path) -> Path:
    """A random model in the engine's format, q4_0 or int4."""
    spec = TINY if size == "tiny" else SIZES[size]
    if engine == "onnx":
        from onnx_vs_genai import random_checkpoint

        from wattwise_convert.onnx import export

        path = folder / f"{spec.name}-onnx"
        if not path.is_dir():
            export(random_checkpoint(spec), path, quant="int4")
        return path
    path = folder / f"{spec.name}-q4_0.gguf"
    if not path.is_file():
        write_random_gguf(path, spec)
    return path


def open_model(
    engine: str, path: Path, kv_type: str, tokens: int, threads: int
) -> tuple[Engine, HeldPrefix, ModelRows]:
    """Loaded, warmed up, and connected to the library of this home."""
    artifact: Artifact = open_artifact(path)
    plan = Plan(
        model=str(path), artifact=artifact, engine=engine, context=tokens + 4 * NEXT, kv_type=kv_type, chunk=512,
        threads=threads, threads_batch=threads, ledger=Ledger(), budget_bytes=None, budget_source="none",
    )  # fmt: skip
    loaded = get_backend(engine).load(artifact, plan.load_spec())
    loaded.forward(Batch(list(range(3, 35))))
    held = HeldPrefix(loaded)
    held.clear()
    return loaded, held, ModelRows(Library.here(), held, loaded, plan, None)


def text_of(vocab: int, tokens: int) -> list[int]:
    """The same random ids in every process."""
    return [int(i) for i in np.random.default_rng(1).integers(3, vocab, tokens + NEXT)]


def digest(logits: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest()


def converse(job: dict[str, Any]) -> dict[str, Any]:
    """The first process: five turns, each saved, and the next one as it would have been."""
    engine, held, rows = open_model(job["engine"], Path(job["path"]), job["kv"], job["tokens"], job["threads"])
    library = Library.here()
    ids, save_ms = text_of(engine.spec.vocab, job["tokens"]), []
    with library.open(SESSION) or sys.exit("the session is open elsewhere"):
        bounds = [job["tokens"] * turn // TURNS for turn in range(TURNS + 1)]
        for start, stop in pairwise(bounds):
            engine.forward(Batch(ids[start : stop - DECODED]))
            for token in ids[stop - DECODED : stop]:
                engine.forward(Batch([token]))
            held.extend(ids[start:stop])
            began = time.perf_counter()
            rows.save(SESSION)
            save_ms.append(1e3 * (time.perf_counter() - began))
    logits = engine.forward(Batch(ids[job["tokens"] :]))
    return {"logits": digest(logits), "save_ms": save_ms, "bytes": sum(library.blobs.sizes().values())}


def go_on(job: dict[str, Any]) -> dict[str, Any]:
    """A new process: the next turn's first token, with or without the saved rows."""
    engine, held, rows = open_model(job["engine"], Path(job["path"]), job["kv"], job["tokens"], job["threads"])
    ids = text_of(engine.spec.vocab, job["tokens"])
    if job["way"] == WAYS[2]:
        drop_from_cache(Library.here().root)
    began = time.perf_counter()
    told = rows.recall(ids, NO_TOKENS, SESSION, is_expected=True) if job["way"] != WAYS[0] else []
    resumed = time.perf_counter()
    logits = engine.forward(Batch(ids[held.rewind_to(ids) :]))
    done = time.perf_counter()
    return {
        "logits": digest(logits), "resume_ms": 1e3 * (resumed - began), "first_ms": 1e3 * (done - began),
        "told": [event.message for event in told],
    }  # fmt: skip


def drop_from_cache(folder: Path) -> None:
    """Let the system forget these files' pages, as after a restart."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def in_child(job: dict[str, Any], home: Path) -> dict[str, Any]:
    """Run a job in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True, check=False,
        env={**os.environ, "WATTWISE_HOME": str(home)},
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(engine: str, kv_type: str, options: argparse.Namespace, folder: Path) -> None:
    """One engine: converse once, then all ways in turns; prints a table."""
    home = folder / f"home-{engine}"
    shutil.rmtree(home, ignore_errors=True)
    path = make_model(engine, options.size, folder)
    job = {"engine": engine, "path": str(path), "kv": kv_type, "tokens": options.tokens, "threads": options.threads}
    before = read_bandwidth(options.threads)
    first = in_child(job, home)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(options.rounds):
        shift = turn % len(WAYS)
        for way in (*WAYS[shift:], *WAYS[:shift]):
            found[way].append(in_child({**job, "way": way}, home))
    after = read_bandwidth(options.threads)
    print(f"\n{engine}, KV in {kv_type}, {options.tokens} + {NEXT} tokens, {options.threads} threads, "
          f"{first['bytes'] / 1e6:.1f} MB of rows; read bandwidth {before:.1f} and {after:.1f} GB/s")  # fmt: skip
    print(f"saving a turn: {', '.join(f'{ms:.0f}' for ms in first['save_ms'])} ms")
    print(f"{'way':<22}{'rows ms':>10}{'first token ms':>16}{'times as soon':>16}   same bits as before")
    for way, results in found.items():
        ratios = [a["first_ms"] / b["first_ms"] for a, b in zip(found[WAYS[0]], results, strict=True)]
        same = sum(result["logits"] == first["logits"] for result in results)
        told = {message.split(" tokens")[0] for result in results for message in result["told"]}
        print(
            f"{way:<22}{statistics.median(r['resume_ms'] for r in results):>10.1f}"
            f"{statistics.median(r['first_ms'] for r in results):>16.1f}{statistics.median(ratios):>16.1f}   "
            f"{same} of {len(results)}{'' if way == WAYS[0] else f', tokens from disk: {chr(44).join(sorted(told))}'}"
        )


def main() -> None:
    """Both engines, or the job of a child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=["tiny", *sorted(SIZES)], default="400M")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--engines", default="llamacpp,onnx")
    parser.add_argument("--llamacpp-kv", default="f16")
    parser.add_argument("--onnx-kv", default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, default=None, help="folder to keep generated models in")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job)
        print(json.dumps(go_on(job) if "way" in job else converse(job)))
        return
    with model_folder(options.keep) as folder:
        for engine in options.engines.split(","):
            measure(engine, {"llamacpp": options.llamacpp_kv, "onnx": options.onnx_kv}[engine], options, folder)


if __name__ == "__main__":
    main()
