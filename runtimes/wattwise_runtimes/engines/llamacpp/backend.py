"""Backend "llamacpp": probes for llama-cpp-python, estimates bytes by a dry run, loads GGUF files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from wattwise_devices.errors import BackendError, BackendUnavailable, LoadError, PlanError, UnsupportedArchitecture
from wattwise_runtimes.contracts import Artifact, Batch, Capabilities, Capability, Ledger, LoadSpec
from wattwise_runtimes.engines.llamacpp import dry_run, guards, log, memory, params
from wattwise_runtimes.engines.llamacpp.abort import AbortFlag, Watched
from wattwise_runtimes.engines.llamacpp.capabilities import capabilities
from wattwise_runtimes.engines.llamacpp.engine import LlamaEngine
from wattwise_runtimes.engines.llamacpp.evidence import (
    Evidence,
    read_buffers,
    read_flash_attention,
    read_key_rotation,
)
from wattwise_runtimes.engines.llamacpp.ggml import devices
from wattwise_runtimes.engines.llamacpp.kv import LlamaKV, Traits
from wattwise_runtimes.engines.llamacpp.kv_types import KV_TYPES, kv_type, rotation_size
from wattwise_runtimes.engines.llamacpp.native import TESTED_VERSION, Native, native
from wattwise_runtimes.engines.llamacpp.tap import Tap
from wattwise_runtimes.formats.gguf import GGUFTensor
from wattwise_runtimes.spec import ModelSpec

Progress = Callable[[float], bool | None]
_ROPE_NEOX = 2  # llama_rope_type


class LlamaBackend:
    """See `contracts.Backend`."""

    name = "llamacpp"

    def probe(self) -> Capability | None:
        try:
            lib = native()
            notes = [lib.system_info().decode("utf-8", "replace").strip()]
            if lib.version != TESTED_VERSION:
                notes.append(f"tested with {TESTED_VERSION}, installed is {lib.version}")
            return Capability(
                name=self.name, version=f"llama-cpp-python {lib.version}", formats=("gguf",), kv_types=KV_TYPES,
                devices=tuple(d.name for d in devices(lib) if d.kind == "cpu"), notes=tuple(notes),
            )  # fmt: skip
        except (BackendUnavailable, AttributeError, OSError):  # missing, or a build that lacks a function
            return None

    def warm_up(self) -> int:
        native()
        return memory.untouched_code_bytes()

    def estimate(self, artifact: Artifact, spec: LoadSpec) -> Ledger:
        return memory.estimate(artifact, spec)

    def capabilities(self, artifact: Artifact, spec: LoadSpec) -> Capabilities:
        guards.check(artifact, spec)
        return capabilities(artifact.spec, spec)

    def load(self, artifact: Artifact, spec: LoadSpec, on_progress: Progress | None = None) -> LlamaEngine:
        guards.check(artifact, spec)
        tensors = guards.open_checked(artifact.path).tensors.values()  # before native code opens the file
        lib = native()
        log.forget_recent()
        with contextlib.ExitStack() as undo:
            capture = undo.enter_context(log.Capture())
            dry_run.release()
            private_before = dry_run.private_bytes()
            model = _load_model(lib, artifact, on_progress)
            free_model = undo.enter_context(_Freed(lib.model_free, model))
            traits = _traits(lib, model, artifact)
            flag = AbortFlag(lib.ggml, lib.api.ggml_abort_callback)
            context_params = params.context_params(lib, artifact.spec, spec)
            context_params.abort_callback, context_params.abort_callback_data = flag.callback, flag.argument
            tap = Tap(lib, artifact.spec, spec) if spec.attention_scores else None
            if tap is not None:
                context_params.cb_eval = tap.callback
            context = lib.context_new(model, context_params)
            if not context:
                raise BackendError(f"llama.cpp cannot make a context for {artifact.path}: {log.last_words()}")
            free_context = undo.enter_context(_Freed(lib.context_free, context))
            watched = Watched(flag)
            compute = _undisturbed(lib, context, watched, tap)
            kv = LlamaKV(lib, context, artifact.spec, spec, traits=traits, compute=compute)
            _check_context(lib, context, artifact.spec, spec, capture.lines)
            grown = dry_run.private_bytes() - private_before
            evidence = _evidence(lib, tensors, artifact, spec, capture.lines, grown - kv.nbytes)
            engine = LlamaEngine(
                lib, model, context, artifact.spec, spec, kv=kv, watched=watched, tap=tap, evidence=evidence
            )
            free_context.keep()
            free_model.keep()
        if spec.attention_scores:
            _try_scores(lib, engine)
        return engine


class _Freed:
    """A native object that is freed on the way out, unless it is kept."""

    def __init__(self, free: Callable[[int], None], handle: int) -> None:
        self._free, self._handle = free, handle

    def __enter__(self) -> _Freed:
        return self

    def keep(self) -> None:
        """It has an owner now."""
        self._handle = 0

    def __exit__(self, *_: object) -> None:
        if self._handle:
            self._free(self._handle)


def _load_model(lib: Native, artifact: Artifact, on_progress: Progress | None) -> int:
    """The native model handle. The callback runs per tensor, so Ctrl-C is noticed while weights are read."""
    interrupted: list[BaseException] = []
    stopped = False

    def progress(done: float, _data: Any) -> bool:
        nonlocal stopped
        try:
            stopped = on_progress is not None and on_progress(min(1.0, done)) is False
        except BaseException as error:  # must not unwind through native frames; raised again below
            interrupted.append(error)
        return not stopped and not interrupted

    model_params = params.model_params(lib)
    callback = lib.api.llama_progress_callback(progress)
    model_params.progress_callback = callback
    model = lib.model_load(str(artifact.path).encode(), model_params)
    if model and not interrupted and not stopped:
        return model
    if model:
        lib.model_free(model)
    if interrupted:
        raise interrupted[0]
    if stopped:
        raise LoadError(f"loading {artifact.path} was stopped")
    raise LoadError(f"llama.cpp cannot load {artifact.path}: {log.last_words()}")


def _traits(lib: Native, model: int, artifact: Artifact) -> Traits:
    """What this engine must know of the native model; refuses kinds of models whose rows cannot be rewound."""
    spec, path = artifact.spec, artifact.path
    kinds = {
        "recurrent": lib.model_is_recurrent, "hybrid": lib.model_is_hybrid, "diffusion": lib.model_is_diffusion,
        "encoder-decoder": lib.model_has_encoder,
    }  # fmt: skip
    for kind, is_kind in kinds.items():
        if is_kind(model):
            raise UnsupportedArchitecture(f"{path} is a {kind} model; only decoder-only transformers run here")
    found = {"vocabulary": lib.vocab_size(lib.model_vocab(model)), "layers": lib.model_layers(model)}
    expected = {"vocabulary": spec.vocab, "layers": spec.layers}
    for what, count in expected.items():
        if found[what] != count:
            raise LoadError(f"{path}: llama.cpp finds {found[what]} for {what}, the model's description says {count}")
    window = lib.model_window(model)
    if (window > 0) != guards.has_two_caches(spec):
        raise LoadError(f"{path}: llama.cpp finds a sliding window of {window}, expected {spec.sliding_window or 0}")
    return Traits(neox_rope=lib.model_rope_type(model) == _ROPE_NEOX, two_caches=window > 0)


def _undisturbed(lib: Native, context: int, watched: Watched, tap: Tap | None) -> Callable[[Any], int]:
    """Decodes a `llama_batch` that is no text: nothing stops it, and its attention is not for anybody."""

    def compute(batch: Any) -> int:
        if tap is not None:
            tap.listen(0)
        return watched.run(lambda: lib.decode(context, batch), None)

    return compute


def _check_context(lib: Native, context: int, spec: ModelSpec, load: LoadSpec, lines: list[str]) -> None:
    """Raise where llama.cpp made something else than this engine's rules say: a move of keys would end the process."""
    rotated = rotation_size(kv_type(load.kv_type), spec.head_dim) > 0
    if read_key_rotation(lines) != rotated:
        raise BackendError(f"llama.cpp {'does not rotate' if rotated else 'rotates'} {load.kv_type} keys, unexpectedly")
    if capabilities(spec, load).shift and not lib.can_shift(lib.memory(context)):
        raise BackendError(f"llama.cpp cannot move keys of {spec.architecture}, unexpectedly")


def _try_scores(lib: Native, engine: LlamaEngine) -> None:
    """Read the attention of one token: so an unknown build of llama.cpp is refused now, not in the middle of a text."""
    try:
        engine.forward(Batch([0]))
        attention = engine.kv.view().attention
        if attention is None or not all(abs(attention(layer) - 1).max() < 1e-3 for layer in range(engine.spec.layers)):
            raise BackendError("the weights over a single row are not 1")
        engine.kv.clear()
    except BackendError as error:
        engine.close()
        raise PlanError(
            f"attention scores cannot be read from this build of llama.cpp (llama-cpp-python {lib.version}, tested "
            f"with {TESTED_VERSION}): {error}. Use the onnx engine, or a policy that reads keys instead.",
            clash=("attention_scores", f"llama-cpp-python {lib.version}"),
        ) from error


def _evidence(
    lib: Native, tensors: Iterable[GGUFTensor], artifact: Artifact, load: LoadSpec, lines: list[str], grown: int
) -> Evidence:
    buffers = read_buffers(lines)
    touched = [*buffers.model.values(), *buffers.output.values()]  # the compute buffer is not, before it runs
    return Evidence(
        buffers=buffers,
        flash_attention=read_flash_attention(lines),
        system_info=lib.system_info().decode("utf-8", "replace").strip(),
        devices=tuple(f"{d.name}: {d.description}" for d in devices(lib)),
        library=f"llama-cpp-python {lib.version}",
        compute_bytes=memory.compute_bytes(tensors, artifact.spec, load, sum(buffers.compute.values())),
        tables_bytes=max(0, grown - sum(touched)) + memory.cell_sets_bytes(load),
    )


BACKEND = LlamaBackend()
