"""Fuzz the file readers for longer, and the native libraries behind them.

First every reader gets mutated files: anything but success or a typed error is a finding. Then files that our checks
accept are opened by llama.cpp, onnxruntime and tokenizers in child processes, as far as they are installed: a child
that ends by a signal is a finding, to be turned into a stricter check. Findings are saved in --out; exit status 1.

    python tools/fuzz.py --minutes 10 [--seed N] [--only NAME ...] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from fuzz.native_probe import Library, NativeProbe  # noqa: E402
from fuzz.targets import Target, fuzz, native_targets, targets  # noqa: E402
from wattwise_devices.errors import Error  # noqa: E402

SLOW_S = 1.0  # CPU time for one tiny input


def main() -> int:
    """Run, print one line per target, save findings."""
    args = _arguments()
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    findings = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        readers = [t for t in targets(folder) if not args.only or t.name in args.only]
        natives = [
            (library, target)
            for library, module, target in native_targets(folder)
            if importlib.util.find_spec(module) and (not args.only or target.name in args.only)
        ]
        seconds = 60 * args.minutes / max(1, len(readers) + 3 * len(natives))  # natives are slower per input
        for target in readers:
            findings += _fuzz_reader(target, random.Random(seed), seconds, args.out)
        for library, target in natives:
            findings += _fuzz_native(library, target, random.Random(seed), 3 * seconds, folder, args.out)
    print(f"{findings} findings" + (f", saved in {args.out}" if findings else ""))
    return 1 if findings else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="random if not given; printed")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="gguf safetensors onnx json tokenizer llama llama-fields onnxruntime onnx-fields tokenizers",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz-findings")
    return parser.parse_args()


def _fuzz_reader(target: Target, rng: random.Random, seconds: float, out: Path) -> int:
    outcome = fuzz(target, rng, seconds=seconds)
    print(
        f"{target.name:12} {outcome.inputs:9,} inputs, {outcome.accepted:,} accepted, {outcome.refused:,} refused, "
        f"slowest {1000 * outcome.slowest_s:.1f} ms, {len(outcome.failures)} findings",
        flush=True,
    )
    for number, (data, error) in enumerate(outcome.failures[:20]):
        path = _save(out, f"{target.name}-{type(error).__name__}-{number}", data)
        path.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))
    return len(outcome.failures) + (outcome.slowest_s > SLOW_S)


def _fuzz_native(library: Library, target: Target, rng: random.Random, seconds: float, folder: Path, out: Path) -> int:
    """Mutated files that our own check accepts, opened by the library in a child."""
    make = target.inputs(rng)
    made, ends, findings = 0, dict[str, int](), 0
    end = time.monotonic() + seconds
    path = folder / f"native-{library}"
    with NativeProbe(library) as probe:
        while time.monotonic() < end:
            data = make()
            made += 1
            try:
                target.run(data)
            except Error:
                continue
            path.write_bytes(data)
            result = probe.ask(path)
            ends[result] = ends.get(result, 0) + 1
            if result not in ("ok", "refused"):
                findings += 1
                _save(out, f"{target.name}-{result.replace(' ', '-')}-{findings}", data)
    print(f"{target.name:12} {made:9,} inputs, {sum(ends.values()):,} accepted; the library: {ends}", flush=True)
    return findings


def _save(out: Path, name: str, data: bytes) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.bin"
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main())
