"""The engines that the conformance test runs: one row each. Adding an engine is adding a row.

A row makes a loaded engine from canonical weights. `folder` is a fresh temporary folder for whatever file the
engine wants; `tolerance` is the largest allowed logit error, in standard deviations of the reference's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wattwise_runtimes.contracts import Engine, LoadSpec
from wattwise_runtimes.spec import ModelSpec

Make = Callable[[ModelSpec, Mapping[str, np.ndarray], LoadSpec, Path], Engine]


@dataclass(frozen=True)
class Row:
    """One engine: its name, how to make it, its precision, and the module it needs."""

    name: str
    make: Make
    tolerance: float
    needs: str | None = None


def _reference(spec: ModelSpec, weights: Mapping[str, np.ndarray], load: LoadSpec, folder: Path) -> Engine:
    from wattwise_runtimes.engines.reference import ReferenceEngine

    return ReferenceEngine(spec, weights, load)


ENGINES: list[Row] = [
    Row("reference", _reference, tolerance=1e-5),
]
