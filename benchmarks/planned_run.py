"""One draw of `predicted_vs_measured.py`, in a process of its own: a JSON object in, one out.

Imports as little as it can beside what every run of wattwise imports: its memory is compared with a prediction.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def measure(draw: dict[str, Any]) -> dict[str, Any]:
    """Plan, load, read, decode, fill."""
    import numpy as np

    import wattwise
    from wattwise.model import load_plan
    from wattwise_devices.process_memory import resident_memory
    from wattwise_runtimes.contracts import Batch

    try:
        budget = wattwise.Budget(memory=draw["budget"])
        made = wattwise.plan(draw["model"], budget=budget, engine=draw["engine"], context=draw["context"])
    except wattwise.errors.MemoryBudgetError as error:
        return {"outcome": "refused", "needed": error.needed, "allowed": error.allowed}
    loaded = load_plan(made)
    engine, vocab = loaded.engine, made.artifact.spec.vocab
    rng = np.random.default_rng(draw["number"])
    prompt = max(8, int(draw["prompt_share"] * min(512, draw["context"] - 64)))
    began = time.perf_counter()
    engine.forward(Batch(rng.integers(0, vocab, prompt)))
    ttft_s = time.perf_counter() - began
    steps = min(48, draw["context"] - prompt - 1)
    began = time.perf_counter()
    for token in rng.integers(0, vocab, steps):
        engine.forward(Batch([int(token)]))
    step_s = (time.perf_counter() - began) / steps
    engine.kv.clear()
    began = time.perf_counter()
    engine.forward(Batch(rng.integers(0, vocab, prompt)))
    warm_s = time.perf_counter() - began
    engine.kv.clear()
    engine.forward(Batch(rng.integers(0, vocab, draw["context"]), logits="none"))  # every row and buffer is touched
    line, predicted = made.roofline, {}
    if line is not None:
        predicted = {
            "predicted_ttft_ms": 1e3 * line.prefill_s(prompt),
            "predicted_per_second": 1 / line.decode_s(prompt + steps / 2),
        }
    return {
        "outcome": "ran",
        "quant": made.artifact.quant,
        "parameters": made.artifact.spec.parameters(),
        "weights_bytes": made.artifact.weights_bytes,
        "threads": made.threads,
        "threads_batch": made.threads_batch,
        "kv_type": made.kv_type,
        "chunk": made.chunk,
        "prompt": prompt,
        "predicted_bytes": made.ledger.total,
        "measured_bytes": resident_memory().peak_bytes,
        "measured_ttft_ms": 1e3 * ttft_s,
        "measured_warm_ttft_ms": 1e3 * warm_s,
        "measured_per_second": 1 / step_s,
        **predicted,
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
