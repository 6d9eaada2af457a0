"""Backend "onnx": probes for onnxruntime, predicts bytes from the checked folder, loads it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import metadata, util

from wattwise_devices.errors import LoadError
from wattwise_runtimes.contracts import Artifact, Capabilities, Capability, Ledger, LoadSpec
from wattwise_runtimes.engines.onnx import memory
from wattwise_runtimes.engines.onnx import session as ort_session
from wattwise_runtimes.engines.onnx.buffers import Bound
from wattwise_runtimes.engines.onnx.calibration import calibration_load, channel_maxima
from wattwise_runtimes.engines.onnx.codec import BITS, Codec, PlainCodec, QuantisedCodec, channel_scales
from wattwise_runtimes.engines.onnx.engine import OnnxEngine
from wattwise_runtimes.engines.onnx.growing import GrowingEngine, load_growing
from wattwise_runtimes.engines.onnx.kv import OnnxKV
from wattwise_runtimes.engines.onnx.limits import KV_TYPES, capabilities, check_load, row_limits
from wattwise_runtimes.engines.onnx.mapped import collapse, release
from wattwise_runtimes.engines.onnx.rewrite import is_rewritten, rewrite
from wattwise_runtimes.engines.onnx.scores import Scores
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
            name="onnx", version=f"onnxruntime {version}", formats=("onnx",), kv_types=KV_TYPES, devices=("cpu",)
        )

    def warm_up(self) -> int:
        ort_session.warm_up()
        return 0

    def estimate(self, artifact: Artifact, spec: LoadSpec) -> Ledger:
        folder, signature = _checked(artifact, spec)
        return memory.predict(folder, signature, artifact.spec, spec)

    def capabilities(self, artifact: Artifact, spec: LoadSpec) -> Capabilities:
        _, signature = _checked(artifact, spec)
        return capabilities(signature, artifact.spec, spec)

    def load(
        self, artifact: Artifact, spec: LoadSpec, on_progress: Progress | None = None
    ) -> OnnxEngine | GrowingEngine:
        folder, signature = _checked(artifact, spec)
        _progress(on_progress, artifact, 0.0)
        if signature.kind == "growing":
            engine = load_growing(folder, signature, artifact.spec, spec)
        else:
            report = partial(_progress, on_progress, artifact)
            engine = _load_shared(folder, signature, artifact.spec, spec, report)
        _progress(on_progress, artifact, 1.0)
        return engine


BACKEND = OnnxBackend()


def _checked(artifact: Artifact, spec: LoadSpec) -> tuple[OnnxFolder, Signature]:
    if artifact.format != "onnx":
        raise LoadError(f"the onnx engine reads ONNX folders only, not {artifact.path}")
    folder = check_onnx_folder(artifact.path)  # again: onnxruntime must see what our own reader has just accepted
    signature = read_signature(folder, artifact.spec, ours=is_our_folder(artifact.path))
    check_load(signature, spec)
    return folder, signature


def _load_shared(
    folder: OnnxFolder, signature: Signature, model: ModelSpec, spec: LoadSpec, report: Callable[[float], None]
) -> OnnxEngine:
    """An engine over a graph whose past and present share buffers. report: told the share of the work that is done."""
    codec = _codec(folder, signature, model, spec, report)
    changed = rewrite(folder.model_path, signature, model, spec, codec) if is_rewritten(spec) else None
    source = changed.model if changed is not None else folder.model_path
    session = ort_session.open_session(source, folder=folder.path, threads=spec.threads)
    release(folder.model.external_files)
    report(0.9)
    chunk = min(spec.chunk, spec.context)
    scores = Scores(changed.scores, model.heads, chunk, spec.context) if changed and changed.scores else None
    kv = OnnxKV(model, spec.context, codec, row_limits(signature, model, spec), scores)
    bound = Bound(session, signature, model, kv, chunk, changed.biases if changed else {}, scores)
    huge_bytes = collapse()
    if model.rope is not None:
        bound.choose_rope_table(spec.context > model.rope.original_context)
    ledger = memory.predict(folder, signature, model, spec)
    able = capabilities(signature, model, spec)
    return OnnxEngine(session, signature, model, spec, kv, bound, able, ledger, huge_bytes)


def _codec(
    folder: OnnxFolder, signature: Signature, model: ModelSpec, spec: LoadSpec, report: Callable[[float], None]
) -> Codec:
    """How the cache is stored; where that takes a calibration, its share of the work is the first half."""
    if spec.kv_type not in BITS:
        return PlainCodec(signature.kv_dtype, model.head_dim)

    def open_plain() -> OnnxEngine:
        return _load_shared(folder, signature, model, calibration_load(model, spec.threads), lambda share: None)

    maxima = channel_maxima(folder, model, open_plain, lambda share: report(share / 2))
    return QuantisedCodec(spec.kv_type, channel_scales(maxima, spec.kv_type))


def _progress(on_progress: Progress | None, artifact: Artifact, share: float) -> None:
    if on_progress is not None and on_progress(share) is False:
        raise LoadError(f"loading {artifact.path} was stopped")
