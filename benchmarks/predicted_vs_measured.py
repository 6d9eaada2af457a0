"""Plans against reality: random (model, weight type, context, budget) draws on both engines, each loaded for real.

Every draw is a process of its own in a control group whose memory limit is its budget. It plans, loads what the plan
says, reads a prompt, decodes, fills its context, and reports predicted and measured bytes, first-token time and
speed, with the machine's read bandwidth beside them. Draws are appended to a file of JSON lines, so a run can be
stopped and goes on where it was; `--report` makes the table and the picture (needs matplotlib) from what is there.

    python benchmarks/predicted_vs_measured.py --draws 200
    python benchmarks/predicted_vs_measured.py --report
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from limited import run_limited

OUT = Path(__file__).parent / "out" / "predicted_vs_measured"
CHILD = Path(__file__).with_name("planned_run.py")
BUILTIN = "builtin"
QUANTS = {
    "llamacpp": ("q4_0", "q8_0", "f16", "q4_k", "q6_k", "q5_1"),
    "onnx": ("int4", "int8", "fp32"),
}
# (layers, width, heads, KV heads, feed-forward, vocabulary): 3 to 60 million weights
SHAPES = (
    (6, 192, 3, 3, 512, 3000), (12, 256, 4, 2, 768, 512), (8, 256, 4, 4, 1024, 8000), (4, 512, 8, 2, 1280, 4096),
    (10, 384, 6, 3, 1024, 2048), (8, 512, 8, 4, 1536, 1000), (6, 640, 10, 5, 1792, 16000), (12, 512, 8, 8, 1536, 4096),
    (16, 512, 8, 4, 1536, 8192), (8, 768, 12, 4, 2048, 2048),
)  # fmt: skip
K_SHAPES = tuple(s for s in SHAPES if s[1] % 256 == 0 and s[4] % 256 == 0)  # k-quants want rows in blocks of 256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One thing to try. budget_share: of what an ample plan for this context takes."""

    number: int
    engine: str
    shape: int | None  # None: the built-in model
    quant: str
    context: int
    budget_share: float
    prompt_share: float

    @property
    def name(self) -> str:
        """Of the model's file or folder."""
        return BUILTIN if self.shape is None else f"shape{self.shape}-{self.quant}"


def draws(count: int, seed: int) -> Iterator[Draw]:
    """The same ones for the same seed; engines in turns."""
    rng = random.Random(seed)
    for number in range(count):
        engine = ("llamacpp", "onnx")[number % 2]
        quant = rng.choice(QUANTS[engine])
        shapes = K_SHAPES if quant.endswith("_k") else SHAPES
        is_builtin = rng.random() < 0.1
        yield Draw(
            number=number,
            engine=engine,
            shape=None if is_builtin else SHAPES.index(rng.choice(shapes)),
            quant="q8_0" if is_builtin else quant,
            context=rng.choice((128, 256, 384, 512) if is_builtin else (128, 256, 384, 512, 768, 1024)),
            budget_share=rng.choice((rng.uniform(0.7, 1.0), rng.uniform(1.0, 1.3), rng.uniform(1.3, 2.0))),
            prompt_share=rng.uniform(0.1, 0.8),
        )


def model_of(draw: Draw, folder: Path) -> str:
    """The model of a draw, made if it is not there."""
    if draw.shape is None:
        return BUILTIN
    from wattwise.lowering import write_synthetic_onnx
    from wattwise_runtimes.spec import ModelSpec, RopeSpec
    from wattwise_runtimes.synthetic import write_synthetic_gguf

    layers, hidden, heads, kv_heads, ffn, vocab = SHAPES[draw.shape]
    spec = ModelSpec(
        architecture="llama", layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=64, ffn=ffn,
        vocab=vocab, context=2048, rope=RopeSpec(dims=64), name=f"shape{draw.shape}",
        tied_head=draw.shape % 2 == 0,
    )  # fmt: skip
    make = write_synthetic_gguf if draw.engine == "llamacpp" else write_synthetic_onnx
    ending = ".gguf" if draw.engine == "llamacpp" else ""
    path = folder / f"{spec.name}-{hidden}x{layers}-{draw.quant}{ending}"
    return str(path if path.exists() else make(spec, draw.quant, folder).path)


def run_one(draw: Draw, folder: Path, env: dict[str, str]) -> dict[str, Any]:
    """One draw in its group, and the bandwidth in the same minute."""
    import wattwise
    from wattwise_devices.bandwidth import read_bandwidth

    model = model_of(draw, folder / "models")
    ample = wattwise.plan(model, engine=draw.engine, context=draw.context)  # measures what is not known yet
    budget = round(ample.ledger.total * draw.budget_share)
    request = json.dumps({**dataclasses.asdict(draw), "model": model, "budget": budget})
    done = run_limited([sys.executable, str(CHILD), request], budget, env=env)
    is_killed = done.returncode in (-9, 137)
    result: dict[str, Any] = {"outcome": "killed" if is_killed else "failed", "exit": done.returncode}
    if done.returncode == 0:
        result = json.loads(done.stdout.splitlines()[-1])
    elif result["outcome"] == "failed":
        result["error"] = done.stderr.strip().splitlines()[-1:]
    return {
        **dataclasses.asdict(draw),
        "budget": budget,
        **result,
        "read_gb_s": read_bandwidth(ample.threads, array_bytes=32 << 20, repeats=3),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def run(count: int, seed: int, folder: Path, engines: Sequence[str]) -> None:
    """All draws that are not in the file yet."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    home = str(folder / "home")
    os.environ["WATTWISE_HOME"] = home
    file = folder / "draws.jsonl"
    known = {row["number"] for row in read(file)}
    for draw in draws(count, seed):
        if draw.number in known or draw.engine not in engines:
            continue
        row = run_one(draw, folder, {"WATTWISE_HOME": home})
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
        print(told(row), flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    """Rows so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def told(row: dict[str, Any]) -> str:
    """One line for people."""
    head = f"{row['number']:4d} {row['engine']:<9}{row['quant']:<6}ctx {row['context']:<5}"
    if row["outcome"] != "ran":
        return f"{head}{row['outcome']} {row.get('error', '')}"
    parts = [f"{what} {100 * (ratio(row, what) - 1):+.0f} %" for what in FIGURES if ratio(row, what) is not None]
    return f"{head}threads {row['threads']}/{row['threads_batch']}  {', '.join(parts)}  {row['read_gb_s']:.0f} GB/s"


FIGURES = {
    "bytes": ("predicted_bytes", "measured_bytes", None),
    "tokens/s": ("predicted_per_second", "measured_per_second", 0.15),
    "first token": ("predicted_ttft_ms", "measured_ttft_ms", 0.25),
}


def ratio(row: dict[str, Any], what: str) -> float:
    """Predicted over measured; NaN where there is no prediction."""
    predicted, measured, _ = FIGURES[what]
    return row[predicted] / row[measured] if row.get(predicted) and row.get(measured) else float("nan")


def tolerance(row: dict[str, Any], what: str) -> float:
    """What the figure may be off by."""
    fixed = FIGURES[what][2]
    return fixed if fixed is not None else 0.05 if row["measured_bytes"] >= 100e6 else 0.10


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: by engine and figure, how many draws are within tolerance."""
    lines = ["| engine | figure | draws | within tolerance | median error | 90 % of errors below | worst |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    ran = [r for r in rows if r["outcome"] == "ran"]
    for engine in QUANTS:
        for what in FIGURES:
            pairs = [(abs(ratio(r, what) - 1), tolerance(r, what)) for r in ran if r["engine"] == engine]
            pairs = sorted(p for p in pairs if p[0] == p[0])  # without NaN
            if pairs:
                errors = [p[0] for p in pairs]
                good = sum(e <= t for e, t in pairs) / len(pairs)
                ninety = errors[min(len(errors) - 1, int(0.9 * len(errors)))]
                shown = " | ".join(f"{100 * x:.1f} %" for x in (good, statistics.median(errors), ninety, errors[-1]))
                lines.append(f"| {engine} | {what} | {len(errors)} | {shown} |")
    outcomes = {o: sum(r["outcome"] == o for r in rows) for o in ("ran", "refused", "killed", "failed")}
    over = sum(r["measured_bytes"] > r["budget"] for r in ran)
    bandwidth = [r["read_gb_s"] for r in rows] or [0.0]
    lines.append("")
    lines.append(", ".join(f"{n} {o}" for o, n in outcomes.items()) + f"; {over} over their budget.")
    lines.append(f"Read bandwidth beside the draws: {min(bandwidth):.0f} to {max(bandwidth):.0f} GB/s.")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], file: Path) -> None:
    """Predicted against measured, one panel per figure, both axes logarithmic, the tolerance as a band."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'wattwise[bench]')", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = {"bytes": "bytes", "tokens/s": "tokens per second", "first token": "first token, ms"}
    figure, axes = pyplot.subplots(1, len(FIGURES), figsize=(13, 4.4))
    ran = [r for r in rows if r["outcome"] == "ran"]
    for axis, (what, (predicted, measured, band)) in zip(axes, FIGURES.items(), strict=True):
        some = [r for r in ran if r.get(predicted)]
        for engine, mark in (("llamacpp", "o"), ("onnx", "^")):
            mine = [r for r in some if r["engine"] == engine]
            axis.plot([r[measured] for r in mine], [r[predicted] for r in mine], mark, ms=4, alpha=0.6, label=engine)
        if some:
            ends = [min(r[measured] for r in some) / 1.5, max(r[measured] for r in some) * 1.5]
            axis.plot(ends, ends, "k-", lw=0.8)
            share = band if band is not None else 0.05
            axis.fill_between(ends, [e * (1 - share) for e in ends], [e * (1 + share) for e in ends], alpha=0.15)
        axis.set(xscale="log", yscale="log", xlabel="measured", ylabel="predicted", title=labels[what])
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--engine", choices=(*QUANTS, "both"), default="both")
    parser.add_argument("--report", action="store_true", help="only the table and the picture")
    options = parser.parse_args()
    if not options.report:
        run(options.draws, options.seed, options.out, list(QUANTS) if options.engine == "both" else [options.engine])
    rows = read(options.out / "draws.jsonl")
    text = table(rows)
    (options.out / "table.md").write_text(text + "\n")
    print(text)
    picture(rows, options.out / "predicted_vs_measured.png")


if __name__ == "__main__":
    main()
