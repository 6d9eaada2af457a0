"""Backend "onnx": probes for onnxruntime, predicts bytes from the checked folder, loads it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata, util

from wattwise_devices.errors import LoadError, PlanError, UnsupportedArchitecture
from wattwise_runtimes.contracts import Artifact, Capabilities, Capability, Ledger, LoadSpec
from wattwise_runtimes.engines.onnx import memory, rewrite
from wattwise_runtimes.engines.onnx import session as ort_session
from wattwise_runtimes.engines.onnx.buffers import Bound
from wattwise_runtimes.engines.onnx.engine import CANCEL_WITHIN_MS, OnnxEngine
from wattwise_runtimes.engines.onnx.growing import GrowingEngine, load_growing
from wattwise_runtimes.engines.onnx.kv import KV_NAMES, OnnxKV
from wattwise_runtimes.engines.onnx.mapped import collapse, release
from wattwise_runtimes.engines.onnx.signature import Signature, read_signature
from wattwise_runtimes.formats.onnx_file import OnnxFolder, check_onnx_folder
from wattwise_runtimes.formats.onnx_spec import is_our_folder
from wattwise_runtimes.spec import ModelSpec

Progress = Callable[[float], bool | None]


class OnnxBackend:
    """See `contracts.Backend`."""

    name = "onnx"

    def probe(self) -> Capability | None:
        if util.find_spec("onnxruntime") is None:
            return None
        try:
            version = metadata.version("onnxruntime")
        except metadata.PackageNotFoundError:  # a build under another name
            version = "of unknown version"
        return Capability(
            name="onnx", version=f"onnxruntime {version}", formats=("onnx",), kv_types=("f32",), devices=("cpu",)
        )

    def warm_up(self) -> int:
        ort_session.warm_up()
        return 0

    def estimate(self, artifact: Artifact, spec: LoadSpec) -> Ledger:
        folder = _checked_folder(artifact)
        signature = read_signature(folder, artifact.spec, ours=is_our_folder(artifact.path))
        _check_load(signature, spec)
        return memory.predict(folder, signature, artifact.spec, spec)

    def load(
        self, artifact: Artifact, spec: LoadSpec, on_progress: Progress | None = None
    ) -> OnnxEngine | GrowingEngine:
        folder = _checked_folder(artifact)
        model_spec = artifact.spec
        signature = read_signature(folder, model_spec, ours=is_our_folder(artifact.path))
        _check_load(signature, spec)
        _progress(on_progress, 0.0, artifact)
        if signature.kind == "growing":
            engine = load_growing(folder, signature, model_spec, spec)
            _progress(on_progress, 1.0, artifact)
            return engine
        biases: dict[str, int | None] = {}
        model: object = folder.model_path
        if spec.tree_leaves > 0:
            model, biases = rewrite.with_attention_bias(folder.model_path, model_spec)
        session = ort_session.open_session(model, folder=folder.path, threads=spec.threads)  # type: ignore[arg-type]
        release(folder.model.external_files)
        _progress(on_progress, 0.9, artifact)
        kv = OnnxKV(model_spec, spec.context, signature.kv_dtype, no_drop=_no_drop(signature, model_spec, spec))
        bound = Bound(session, signature, model_spec, kv, min(spec.chunk, spec.context), biases)
        huge_bytes = collapse()
        if model_spec.rope is not None:
            bound.choose_rope_table(spec.context > model_spec.rope.original_context)
        _progress(on_progress, 1.0, artifact)
        ledger = memory.predict(folder, signature, model_spec, spec)
        return OnnxEngine(
            session,
            signature,
            model_spec,
            spec,
            kv,
            bound,
            _capabilities(signature, spec, kv.no_drop),
            ledger,
            huge_bytes,
        )


BACKEND = OnnxBackend()


def _checked_folder(artifact: Artifact) -> OnnxFolder:
    if artifact.format != "onnx":
        raise LoadError(f"the onnx engine reads ONNX folders only, not {artifact.path}")
    return check_onnx_folder(artifact.path)  # again: onnxruntime must see what our own reader has just accepted


def _check_load(signature: Signature, spec: LoadSpec) -> None:
    held = KV_NAMES[signature.kv_dtype]
    if spec.kv_type != held:
        raise PlanError(
            f"this ONNX folder keeps its KV cache in {held}; kv type {spec.kv_type!r} is not available",
            clash=(f"kv type {spec.kv_type}", f"graph with {held} cache"),
        )
    if spec.attention_scores:
        raise PlanError(
            "the onnx engine cannot show attention scores",
            clash=("attention_scores", "engine onnx"),
        )
    if spec.tree_leaves > 0 and signature.kind != "ours":
        raise PlanError(
            "trees need a graph with positions as an input; this folder was not written by wattwise. "
            "Convert the model again, or load it with tree_leaves=0.",
            clash=("tree_leaves", "foreign ONNX folder"),
        )
    if spec.context < 1 or spec.chunk < 1:
        raise UnsupportedArchitecture(f"context {spec.context} and chunk {spec.chunk} must be at least 1")


def _no_drop(signature: Signature, model: ModelSpec, spec: LoadSpec) -> str | None:
    """Why rows cannot be evicted from the middle, or None."""
    if signature.kind != "ours":
        return "this graph takes a row's number for its position"
    if model.sliding_window is not None and spec.tree_leaves == 0:
        return "sliding-window layers count rows, not positions, unless the model is loaded with tree_leaves"
    return None


def _capabilities(signature: Signature, spec: LoadSpec, no_drop: str | None) -> Capabilities:
    return Capabilities(
        tree_tokens=min(spec.chunk, spec.context) if spec.tree_leaves > 0 else 0,
        drop="token" if no_drop is None else "none",
        keys=True,
        export=True,
        cancel_within_ms=CANCEL_WITHIN_MS,
    )


def _progress(on_progress: Progress | None, share: float, artifact: Artifact) -> None:
    if on_progress is not None and on_progress(share) is False:
        raise LoadError(f"loading {artifact.path} was stopped")
