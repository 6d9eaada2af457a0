"""Measures of a conversion: what the written file says against its source.

Weights are compared one by one, the spec field by field, the tokenizer and the chat template on texts, and the
logits of the engine that will run the file with those of the reference engine on the source. Pure measuring: what is
good enough is judged in `certificate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from wattwise_convert.checkpoint import Checkpoint, TensorSource
from wattwise_convert.progress import Progress
from wattwise_convert.streamed import StreamedWeights
from wattwise_devices.errors import BackendUnavailable, TemplateError
from wattwise_runtimes.artifact import open_artifact
from wattwise_runtimes.contracts import Batch, Engine, LoadSpec
from wattwise_runtimes.spec import ModelSpec
from wattwise_runtimes.text.tokenizer import Tokenizer

TEXT = (
    "Early in the morning the harbour was quiet. Two fishing boats had come in before the rain, and their crews were "
    'sorting the catch under a tarpaulin. "Eleven crates," said the older woman, "and that is a good night for '
    'March." Her nephew wrote 11 into the book, added the date, and drew a line. On the quay a dog waited for what '
    "would fall. Later the sun came out, the stones began to steam, and by noon nobody could have said where the "
    "water had been. The buyer from the town paid 4.75 a kilo, more than last week; he always paid more when the "
    "road was bad, because then he was the only one who came.\n\nThat evening they talked about the engine. It had "
    "run for twenty years, and for the last three of them it had only run because the nephew listened to it. A new "
    "one would cost more than the boat. An old one might last, or might not. In the end they decided nothing, as on "
    "most evenings, and went home through the narrow street behind the church."
)
_TOKEN_TEXTS = (
    TEXT, "", " a", "a  b   c", "tab\tand\nnew line\r\n\n", "naïve café, Größe, señor", "日本語 и русский",
    "👩‍🔬🇫🇷 emoji",
    "12345 3.14159 1e-9", "def f(x):\n    return x**2  # code", "<s></s><|im_start|>user", "don't I'LL we've",
)  # fmt: skip
_CONVERSATION = (
    {"role": "user", "content": "What is the capital of Portugal?"},
    {"role": "assistant", "content": "Lisbon."},
    {"role": "user", "content": "And how far is it from Porto? Give kilometres & miles."},
)
MAX_TOKENS = 256
_EXACT_KV = "f32"
_SPEC_NAMES_ONLY = ("architecture", "name", "attn_scale", "rope", "sliding_layers", "eos_ids")  # compared by meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorError:
    """How far one written weight is from its source. relative_rms: of the error, over the RMS of the source."""

    name: str
    type: str
    max_abs_error: float
    relative_rms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitAgreement:
    """The written model on an engine against the source on the reference engine, over one text.

    kl_mean, kl_max: KL divergence of the next-token distributions in nats. top1: share of equal first choices.
    source_nats, written_nats: mean negative log likelihood per token of the text.
    """

    engine: str
    tokens: int
    kl_mean: float
    kl_max: float
    top1: float
    max_logit_error: float  # in standard deviations of the source's logits
    source_nats: float
    written_nats: float


def tensor_errors(
    source: Checkpoint, written: Mapping[str, TensorSource], spec: ModelSpec, progress: Progress
) -> list[TensorError]:
    """One entry per tensor of the source."""
    progress.expect(4 * source.spec.parameters())
    return [_tensor_error(source, tensor, written[name], spec, progress) for name, tensor in source.tensors.items()]


def _tensor_error(
    source: Checkpoint, tensor: TensorSource, written: TensorSource, spec: ModelSpec, progress: Progress
) -> TensorError:
    factor = np.float32(_query_factor(source.spec, spec, tensor.name))
    largest, error, power = 0.0, 0.0, 0.0
    for start, rows in tensor.blocks():
        rows = rows * factor
        difference = written.read(start, start + len(rows)) - rows
        largest = max(largest, float(np.abs(difference).max(initial=0.0)))
        error += float(np.square(difference, dtype=np.float64).sum())
        power += float(np.square(rows, dtype=np.float64).sum())
        progress.add(4 * rows.size)
    relative = float(np.sqrt(error / power)) if power else float(np.sqrt(error))
    return TensorError(name=tensor.name, type=written.dtype, max_abs_error=largest, relative_rms=relative)


def _query_factor(source: ModelSpec, written: ModelSpec, name: str) -> float:
    """GGUF has the score scale in the queries where llama.cpp would take another one."""
    carrier = ".attn_q_norm." if source.qk_norm else ".attn_q."
    return source.scale / written.scale if carrier in name else 1.0


def spec_differences(source: ModelSpec, written: ModelSpec) -> list[str]:
    """Fields that the written file says differently, in words. Fields that mean the same count as equal."""
    found: list[str] = []
    for field in dataclasses.fields(source):
        a, b = getattr(source, field.name), getattr(written, field.name)
        if field.name not in _SPEC_NAMES_ONLY and not _same(a, b):
            found.append(f"{field.name}: {a!r} became {b!r}")
    if not set(source.eos_ids) <= set(written.eos_ids):
        found.append(f"eos_ids: {source.eos_ids} became {written.eos_ids}")
    if [source.is_sliding(i) for i in range(source.layers)] != [written.is_sliding(i) for i in range(written.layers)]:
        found.append("sliding_layers")
    if not _same_rope(source, written):
        found.append(f"rope: {source.rope} became {written.rope}")
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-6, atol=0))
    return a == b


def _same_rope(source: ModelSpec, written: ModelSpec) -> bool:
    """Whether all positions are rotated alike, within the rounding of factors to float32."""
    if source.rope is None or written.rope is None:
        return source.rope is written.rope
    if source.rope.dims != written.rope.dims or not _same(source.rope.attention_factor, written.rope.attention_factor):
        return False
    contexts = {source.context, max(1, source.rope.original_context), source.rope.original_context + 1}
    return all(
        np.allclose(
            source.rope.inverse_frequencies(context=context, local=local),
            written.rope.inverse_frequencies(context=context, local=local),
            rtol=1e-5,
            atol=0,
        )
        for context in contexts
        for local in {source.is_sliding(i) for i in range(source.layers)}
    )


def tokenizer_differences(source: Tokenizer, written: Tokenizer) -> list[str]:
    """Texts that the two tokenizers encode or decode differently."""
    found: list[str] = []
    for text in _TOKEN_TEXTS:
        for special in (False, True):
            a, b = (t.encode(text, bos=True, parse_special=special) for t in (source, written))
            if a != b:
                found.append(f"{text[:40]!r} becomes {b[:12]} instead of {a[:12]}")
            elif source.decode(a) != written.decode(a):
                found.append(f"ids of {text[:40]!r} are decoded differently")
    return found


def render_template(tokenizer: Tokenizer) -> str:
    """A fixed conversation in the tokenizer's own template; the template's complaint where it refuses."""
    from wattwise_runtimes.text.template import ChatTemplate

    try:
        template = ChatTemplate.for_tokenizer(tokenizer, clock=lambda: datetime(2024, 1, 1))
        return template.render(_CONVERSATION)
    except TemplateError as error:
        return f"TemplateError: {error}"


def ids_of_text(checkpoint: Checkpoint) -> list[int]:
    """The certificate's text as ids; fixed random ids for a model without a tokenizer."""
    spec = checkpoint.spec
    limit = min(MAX_TOKENS, spec.context, spec.sliding_window or MAX_TOKENS)
    if checkpoint.tokenizer is None:
        return np.random.default_rng(0).integers(0, spec.vocab, limit).tolist()
    return checkpoint.tokenizer.encode(TEXT, bos=True)[:limit]


def logit_agreement(
    checkpoint: Checkpoint, path: Path, form: str, spec: ModelSpec, written: Mapping[str, TensorSource]
) -> LogitAgreement:
    """Run the text through both. The engine is the one that runs such files; the reference engine if it is missing."""
    from wattwise_runtimes.engines.reference import ReferenceEngine

    ids = ids_of_text(checkpoint)
    load = LoadSpec(context=len(ids), chunk=len(ids), kv_type=_EXACT_KV)
    reference = ReferenceEngine(checkpoint.spec, StreamedWeights(checkpoint.tensors), load)
    wanted = reference.forward(Batch(ids, logits="all")).astype(np.float64)
    name, engine = _engine(path, form, spec, written, load)
    try:
        got = np.array(engine.forward(Batch(ids, logits="all")), dtype=np.float64)
    finally:
        engine.close()
    p, q = _log_softmax(wanted), _log_softmax(got)
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    following = np.asarray(ids[1:])
    rows = np.arange(len(following))
    return LogitAgreement(
        engine=name, tokens=len(ids), kl_mean=float(kl.mean()), kl_max=float(kl.max()),
        top1=float((wanted.argmax(axis=-1) == got.argmax(axis=-1)).mean()),
        max_logit_error=float(np.abs(wanted - got).max() / wanted.std()),
        source_nats=float(-p[rows, following].mean()), written_nats=float(-q[rows, following].mean()),
    )  # fmt: skip


def _engine(
    path: Path, form: str, spec: ModelSpec, written: Mapping[str, TensorSource], load: LoadSpec
) -> tuple[str, Engine]:
    from wattwise_runtimes.registry import get_backend

    name = "llamacpp" if form == "gguf" else "onnx"
    try:
        backend = get_backend(name)
    except BackendUnavailable:
        from wattwise_runtimes.engines.reference import ReferenceEngine

        return "reference", cast(Engine, ReferenceEngine(spec, StreamedWeights(written), load))
    return name, backend.load(open_artifact(path), load)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
