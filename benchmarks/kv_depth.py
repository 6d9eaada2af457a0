"""The KV cache by depth: peak memory and decode time after prompts of 1 to 8 times a KV budget, evicting or not.

Every run is a process of its own (its peak is its own); the rows of one round follow each other, rounds are repeated,
medians are told. The read bandwidth stands beside them. Needs matplotlib for the picture.

    python benchmarks/kv_depth.py --size 60M --budget 448            # table.md and kv_depth.png, in benchmarks/out
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from support import SIZES, write_random_gguf

OUT = Path(__file__).parent / "out" / "kv_depth"
FULL = "full"
POLICIES = {"llamacpp": ("window", "keydiff", "knorm"), "onnx": ("window", "keydiff", "keydiff:head", "snapkv")}
TIMES = (1, 2, 4, 8)
STEPS = 64


def one(job: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: read a prompt, decode, tell."""
    import numpy as np

    import wattwise
    from wattwise.model import load_plan
    from wattwise.prefix import NO_TOKENS
    from wattwise_devices.bandwidth import read_bandwidth
    from wattwise_devices.process_memory import resident_memory
    from wattwise_runtimes.contracts import Batch

    policy, budget = job["policy"], job["budget"]
    name, _, level = policy.partition(":")
    asked = (
        None
        if policy == FULL
        else f"{name}:{budget}" + (f":{level}" if level else "" if name == "window" else ":token")
    )
    made = wattwise.plan(
        job["model"], engine=job["engine"], kv_policy=asked, threads=job["threads"],
        context=None if asked else job["prompt"] + STEPS + 1,
    )  # fmt: skip
    model = load_plan(made)
    rng = np.random.default_rng(0)
    held, engine = model.held, model.engine

    def read(ids: list[int]) -> None:
        done = 0
        while done < len(ids):
            piece = held.piece(len(ids) - done)
            held.make_room(piece, NO_TOKENS)
            engine.forward(Batch(ids[done : done + piece]))
            held.extend(ids[done : done + piece])
            done += piece

    vocab = engine.spec.vocab
    began = time.perf_counter()
    read(rng.integers(0, vocab, job["prompt"]).tolist())
    prefill_s = time.perf_counter() - began
    steps = []
    for token in rng.integers(0, vocab, STEPS).tolist():
        began = time.perf_counter()
        read([token])
        steps.append(time.perf_counter() - began)
    peak = resident_memory().peak_bytes
    return {
        "peak_bytes": peak,
        "decode_ms": 1e3 * statistics.mean(steps),  # evictions among the steps count
        "decode_median_ms": 1e3 * statistics.median(steps),
        "prefill_per_second": job["prompt"] / prefill_s,
        "kv_rows": engine.kv.length,
        "read_gb_s": read_bandwidth(made.threads, array_bytes=32 << 20, repeats=2),
    }


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All combinations, round by round."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"random-{options.size}-{options.quant}.gguf"
    if not path.is_file():
        write_random_gguf(path, SIZES[options.size], options.quant)
    rows = []
    for turn in range(options.rounds):
        for engine in options.engine or POLICIES:
            for policy in (FULL, *POLICIES[engine]):
                for times in TIMES:
                    job = {
                        "model": str(path), "engine": engine, "policy": policy, "budget": options.budget,
                        "prompt": times * options.budget, "threads": options.threads,
                    }  # fmt: skip
                    done = subprocess.run(
                        [sys.executable, __file__, "--job", json.dumps(job)],
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                    if done.returncode:
                        raise SystemExit(f"{job}: {done.stderr.strip().splitlines()[-1]}")
                    row = {**job, "times": times, "round": turn, **json.loads(done.stdout.splitlines()[-1])}
                    rows.append(row)
                    print(
                        f"{engine:<9}{policy:<13}{times}x  peak {row['peak_bytes'] / 1e6:7.1f} MB  decode "
                        f"{row['decode_ms']:6.2f} ms  read {row['prefill_per_second']:6.0f} t/s, "
                        f"{row['read_gb_s']:.0f} GB/s",
                        flush=True,
                    )
    return rows


def medians(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, float]]:
    """Per engine, policy and depth."""
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for key in sorted({(r["engine"], r["policy"], r["times"]) for r in rows}):
        same = [r for r in rows if (r["engine"], r["policy"], r["times"]) == key]
        found[key] = {
            name: statistics.median(r[name] for r in same)
            for name in ("peak_bytes", "decode_ms", "prefill_per_second", "read_gb_s")
        }
    return found


def table(rows: list[dict[str, Any]], budget: int) -> str:
    """Markdown; growth is against the same policy at once its budget."""
    lines = [
        "| engine | policy | prompt | peak MB | growth | decode ms | growth | read t/s | read GB/s |\n"
        "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    ]
    found = medians(rows)
    for (engine, policy, times), row in found.items():
        first = found[engine, policy, TIMES[0]]
        lines.append(
            f"| {engine} | {policy} | {times * budget} | {row['peak_bytes'] / 1e6:.1f} | "
            f"{100 * (row['peak_bytes'] / first['peak_bytes'] - 1):+.1f} % | {row['decode_ms']:.2f} | "
            f"{100 * (row['decode_ms'] / first['decode_ms'] - 1):+.1f} % | {row['prefill_per_second']:.0f} | "
            f"{row['read_gb_s']:.0f} |"
        )
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], budget: int, path: Path) -> None:
    """Peak memory and decode time over depth, one column per engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = medians(rows)
    engines = sorted({engine for engine, _, _ in found})
    figure, axes = pyplot.subplots(2, len(engines), figsize=(5.5 * len(engines), 7), squeeze=False, sharex=True)
    for column, engine in enumerate(engines):
        for policy in (FULL, *POLICIES[engine]):
            depth = [times * budget for times in TIMES]
            for axis, name, scale in ((axes[0], "peak_bytes", 1e-6), (axes[1], "decode_ms", 1.0)):
                values = [scale * found[engine, policy, times][name] for times in TIMES]
                axis[column].plot(depth, values, marker="o", label="full cache" if policy == FULL else policy)
        axes[0][column].set(title=f"{engine}, KV budget {budget} tokens", ylabel="peak memory of the process, MB")
        axes[1][column].set(xlabel="tokens read", ylabel="decode, ms per token")
        axes[0][column].legend(fontsize=8)
        for axis in (axes[0][column], axes[1][column]):
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="60M")
    parser.add_argument("--quant", default="q8_0")
    parser.add_argument("--budget", type=int, default=448, help="tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", action="append", choices=sorted(POLICIES), help="default: both")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(one(json.loads(options.job))))
        return
    rows = run(options)
    (OUT / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = table(rows, options.budget)
    (OUT / "table.md").write_text(text + "\n")
    print(text)
    picture(rows, options.budget, OUT / "kv_depth.png")


if __name__ == "__main__":
    main()
