"""Loads the reference engine from a GGUF file: every weight dequantised to float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from wattwise_devices.errors import LoadError, PlanError
from wattwise_runtimes.contracts import Artifact, Capabilities, Capability, Ledger, LoadSpec
from wattwise_runtimes.engines.reference.engine import ReferenceEngine, capabilities


class ReferenceBackend:
    """Backend of the reference engine."""

    name = "reference"

    def probe(self) -> Capability | None:
        return Capability(
            name="reference", version=f"numpy {np.__version__}", formats=("gguf",), kv_types=("f32",),
            notes=("for comparison only: slow, and every weight takes 4 bytes",),
        )  # fmt: skip

    def warm_up(self) -> int:
        np.dot(np.ones((64, 64), np.float32), np.ones((64, 64), np.float32))  # starts numpy's thread pool
        return 0

    def estimate(self, artifact: Artifact, spec: LoadSpec) -> Ledger:
        s = artifact.spec
        scores = 4 * s.heads * spec.chunk * spec.context * 3
        return Ledger(
            weights=4 * s.parameters(),
            kv=4 * s.kv_row_elements() * spec.context,
            compute=scores + 4 * spec.chunk * (s.vocab + 4 * s.ffn),
        )

    def capabilities(self, artifact: Artifact, spec: LoadSpec) -> Capabilities:
        return capabilities(artifact.spec, spec)

    def load(
        self, artifact: Artifact, spec: LoadSpec, on_progress: Callable[[float], bool | None] | None = None
    ) -> ReferenceEngine:
        from wattwise_runtimes.formats.gguf import read_gguf
        from wattwise_runtimes.formats.gguf_spec import canonical_tensors

        if artifact.format != "gguf":
            raise LoadError(f"the reference engine reads GGUF files only, not {artifact.path}")
        if spec.kv_type not in ("f32", "f16"):  # f16 is the default elsewhere; here it would only lose precision
            raise PlanError(
                f"the reference engine keeps its KV cache in f32; kv type {spec.kv_type!r} is not available"
            )
        tensors = canonical_tensors(read_gguf(artifact.path), artifact.spec)
        weights: dict[str, np.ndarray] = {}
        for done, (name, tensor) in enumerate(tensors.items()):
            if on_progress is not None and on_progress(done / len(tensors)) is False:
                raise LoadError(f"loading {artifact.path} was stopped")
            weights[name] = tensor.read_rows(0, tensor.shape[0])
        return ReferenceEngine(artifact.spec, weights, spec)


BACKEND = ReferenceBackend()
