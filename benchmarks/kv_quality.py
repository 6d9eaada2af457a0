"""What eviction costs in quality: every policy at 75, 50 and 25 % of the cache against the full cache, as a table.

Perplexity, KL divergence and top-1 agreement over a text longer than the budget, and retrieval (see
`wattwise.retrieval`). Runs `wattwise eval --kv` for every combination, so anyone can check a row by hand.

    python benchmarks/kv_quality.py builtin TEXT --engine llamacpp --window 1024
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from wattwise.kv.policy import policy_names

OUT = Path(__file__).parent / "out" / "kv_quality"
SHARES = (75, 50, 25)
LEVELS = {"llamacpp": ("token",), "onnx": ("token", "head"), "reference": ("token", "head")}


def evaluate(options: argparse.Namespace, kv: str) -> dict[str, Any]:
    """One row, by the command line."""
    command = [
        sys.executable, "-m", "wattwise", "eval", options.model, options.text, "--json", "--engine", options.engine,
        "--window", str(options.window), "--kv", kv, "--max-tokens", str(options.max_tokens),
        "--retrieval", str(options.retrieval),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout.splitlines()[-1])
    return {**said, "kv": kv} if done.returncode == 0 else {"kv": kv, "refused": said["error"]["message"]}


def line(row: dict[str, Any], full_nats: float | None) -> str:
    """One row of the table; perplexity against the full cache's."""
    if "refused" in row:
        return f"| {row['kv']} | refused: {row['refused']} | | | | |"
    growth = "" if full_nats is None else f" ({100 * (2.718281828 ** (row['nats_per_token'] - full_nats) - 1):+.1f} %)"
    answers = {r["kind"]: f"{100 * r['accuracy']:.0f} % of {100 * r['against']:.0f} %" for r in row["retrieval"]}
    return (
        f"| {row['kv']} | {row['perplexity']:.3f}{growth} | {row['kl_nats_per_token']:.4f} | "
        f"{100 * row['top1_agreement']:.1f} % | {answers.get('needle', '')} | {answers.get('pairs', '')} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--engine", choices=sorted(LEVELS), default="llamacpp")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=20_000)
    parser.add_argument("--retrieval", type=int, default=50)
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    whole = evaluate(options, "window:100%")
    full = whole.get("nats_per_token")
    lines = [f"| KV policy ({options.engine}) | perplexity | KL | same top-1 | needle, of full | pairs, of full |"]
    lines += ["|---|---:|---:|---:|---:|---:|", line(whole, None)]
    for name in policy_names():
        for level in LEVELS[options.engine]:
            if name == "window" and level == "head":
                continue  # the same rows for all heads by definition
            for share in SHARES:
                lines.append(line(evaluate(options, f"{name}:{share}%:{level}"), full))
                print(lines[-1], flush=True)
    text = "\n".join(lines)
    (OUT / f"{Path(options.model).stem}-{options.engine}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
