"""Run by test_kill: forks conversions and kills each at a random moment. Prints what was found as JSON.

Usage: kill_helper.py FOLDER NAME QUANT TRIALS SEED. Forking saves the start of an interpreter for each trial.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from support.checkpoints import tiny_checkpoint
from wattwise_convert.api import convert
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.spec import RopeSpec


def main(folder: Path, name: str, quant: str, trials: int, seed: int) -> dict[str, object]:
    """Counts of what the target was after each kill, and how long an undisturbed conversion takes."""
    source = tiny_checkpoint(
        "llama", hidden=256, heads=4, head_dim=64, ffn=1024, layers=8, vocab=2048, rope=RopeSpec(dims=64)
    )
    target, draw = folder / name, random.Random(seed)
    convert(source, target, quant=quant)
    whole = _bytes(target)
    start = time.monotonic()
    convert(source, target, quant=quant, overwrite=True)
    seconds = time.monotonic() - start
    found = {"absent": 0, "whole": 0, "other": 0, "leftovers": 0}
    for _ in range(trials):
        _remove(target)
        child = os.fork()
        if child == 0:
            convert(source, target, quant=quant)
            os._exit(0)
        time.sleep(draw.uniform(0, 1.1 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found["leftovers"] += sum(path.name != name for path in folder.iterdir())
        if not target.exists():
            found["absent"] += 1
        elif _bytes(target) == whole and open_artifact(target).spec.layers == 8:
            found["whole"] += 1
        else:
            found["other"] += 1
    convert(source, target, quant=quant, overwrite=True)
    return {**found, "seconds": seconds, "at_the_end": sorted(path.name for path in folder.iterdir())}


def _bytes(path: Path) -> dict[str, bytes]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


def _remove(path: Path) -> None:
    for file in path.iterdir() if path.is_dir() else ():
        file.unlink()
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))))
