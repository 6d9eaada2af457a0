"""The nearest plans that keep to a bound on speed or energy: other threads, other weights in the same folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from wattwise.measured_rates import RateStore
from wattwise.planning.plan import Plan
from wattwise.planning.power import power_of
from wattwise.planning.threads import candidates
from wattwise.roofline import Prediction, Roofline
from wattwise_devices.errors import Error
from wattwise_devices.machine import probe_machine
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.workload import workload_of

_MOST_FILES = 32
Keeps = Callable[[Prediction], bool]


def longest_prompt(made: Plan, ttft_ms: float) -> int:
    """Tokens of the longest prompt whose first token comes in time; 0 if none does."""
    if made.roofline is None:
        return 0
    low, high = 0, made.context
    while low < high:
        middle = (low + high + 1) // 2
        if made.roofline.reply(middle).ttft_ms.value <= ttft_ms:
            low = middle
        else:
            high = middle - 1
    return low


def faster_plans(made: Plan, keeps: Keeps, what: str) -> list[str]:
    """In words, what else would keep to the bound, from what is already known about this machine."""
    if made.roofline is None or made.prediction is None:
        return []
    found = _other_threads(made, keeps)
    found += [f"{path.name} in the same folder" for path in _other_weights(made, keeps)]
    return found


def _other_threads(made: Plan, keeps: Keeps) -> list[str]:
    """Only where the caller fixed the count: otherwise the best was taken already."""
    machine, settings = probe_machine(), made.settings
    if settings is None or settings["threads"] is None:
        return []
    for n in candidates(machine):
        prediction = _predicted(made, made.artifact.path, n)
        if prediction is not None and keeps(prediction):
            return [f"--threads {n}"]
    return []


def _other_weights(made: Plan, keeps: Keeps) -> list[Path]:
    """Files of the same model, in the same format, in other weight types whose rates are known."""
    path = made.artifact.path
    pattern = "*.gguf" if made.artifact.format == "gguf" else "*/genai_config.json"
    files = [f if f.is_file() and f.suffix == ".gguf" else f.parent for f in sorted(path.parent.glob(pattern))]
    found = []
    for file in files[:_MOST_FILES]:
        if file != path and _is_same_model(made, file):
            prediction = _predicted(made, file, made.threads)
            if prediction is not None and keeps(prediction):
                found.append(file)
    return found


def _is_same_model(made: Plan, file: Path) -> bool:
    try:
        spec = open_artifact(file).spec
    except (Error, OSError):
        return False
    mine = made.artifact.spec
    shape = ("architecture", "layers", "hidden", "heads", "kv_heads", "ffn", "vocab")
    return all(getattr(spec, name) == getattr(mine, name) for name in shape)


def _predicted(made: Plan, file: Path, threads: int) -> Prediction | None:
    """From rates in the cache only: a refusal is no time to measure."""
    assert made.roofline is not None and made.prediction is not None  # checked by `faster_plans`
    artifact = open_artifact(file)
    workload = workload_of(artifact)
    store = RateStore(probe_machine(), may_measure=False)
    known = store.known(made.engine, workload.types, made.kv_type, [threads], artifact.weights_bytes)
    if known is None:
        return None
    rates = known.for_threads(threads)
    roofline: Roofline = dataclasses.replace(
        made.roofline, workload=workload, rates=rates, rates_batch=rates, threads=threads, threads_batch=threads,
        speed_now=None, speed_now_batch=None, power=power_of(probe_machine(), made.engine),
    )  # fmt: skip
    return roofline.reply(made.prediction.prompt_tokens, made.prediction.reply_tokens)
