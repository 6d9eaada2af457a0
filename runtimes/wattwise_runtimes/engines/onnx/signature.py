"""What kind of decoder graph a folder holds, read from its checked inputs and outputs.

Three kinds are known:
- "ours": written by our converter. Rows of logits are chosen, positions are an input: everything works.
- "shared": onnxruntime-genai's builder with GroupQueryAttention. Past and present share one buffer; rotary
  positions come from the row number inside the operator, so nothing may be dropped from the middle.
- "growing": older graphs (MultiHeadAttention, Attention). Each run returns a longer cache; rewinding works.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.formats.onnx_file import OnnxFolder
from wattwise_runtimes.formats.onnx_model import OnnxValue
from wattwise_runtimes.spec import ModelSpec

_ROLES = ("input_ids", "attention_mask", "position_ids")
_NUMPY = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Names and types to bind.

    past, present: per layer, [key, value], or one name where both are in one tensor [2, batch, heads, rows, dim].
    rows: input that chooses logit rows (None: there is none). last_row_only: logits of the last row are all there is.
    """

    kind: Literal["ours", "shared", "growing"]
    ids: OnnxValue
    mask: OnnxValue | None
    positions: OnnxValue | None
    logits: OnnxValue
    past: tuple[tuple[str, ...], ...]
    present: tuple[tuple[str, ...], ...]
    kv_dtype: type
    rows: str | None = None
    rope_table: str | None = None
    last_row_only: bool = False

    @property
    def combined(self) -> bool:
        """Keys and values of a layer are one tensor."""
        return len(self.past[0]) == 1


def read_signature(folder: OnnxFolder, spec: ModelSpec, *, ours: bool) -> Signature:
    """The signature of a checked folder; raises where the graph and the spec contradict each other."""
    graph, path = folder.model, folder.model_path
    decoder = folder.genai_config["model"]["decoder"]
    inputs = {v.name: v for v in graph.inputs if v.name not in graph.initializers}
    optional = {v.name for v in graph.inputs if v.name in graph.initializers}
    outputs = {v.name: v for v in graph.outputs}
    names_in, names_out = _names(decoder, "inputs"), _names(decoder, "outputs")
    past = _cache_names(names_in, "past", spec.layers)
    present = _cache_names(names_out, "present", spec.layers)
    cache = [n for pair in past for n in pair]
    missing = [n for n in cache if n not in inputs] + [n for p in present for n in p if n not in outputs]
    if missing:
        raise CorruptArtifact(path, "inputs and outputs", f"without {missing[:3]}", "past and present of every layer")
    roles = {
        role: inputs.pop(names_in.get(role, role), None) for role in ("input_ids", "attention_mask", "position_ids")
    }
    extra = sorted(set(inputs) - set(cache))
    if extra:
        raise UnsupportedArchitecture(f"{path}: graph inputs {extra[:4]} are not known here, so they cannot be fed")
    logits = outputs.get(names_out.get("logits", "logits"))
    ids = roles["input_ids"]
    if ids is None or logits is None:
        raise UnsupportedArchitecture(f"{path}: the graph has no token ids as input, or no logits as output")
    _check_types(folder, spec, ids, logits, [inputs[n] for n in cache])
    ours = ours and roles["position_ids"] is not None and "logits_rows" in optional
    grouped = graph.ops.get(("com.microsoft", "GroupQueryAttention"), 0)
    return Signature(
        kind="ours" if ours else "shared" if grouped == spec.layers else "growing",
        ids=ids,
        mask=roles["attention_mask"],
        positions=roles["position_ids"],
        logits=logits,
        past=past,
        present=present,
        kv_dtype=_NUMPY[inputs[cache[0]].dtype],
        rows="logits_rows" if ours else None,
        rope_table="rope_table" if ours and "rope_table" in optional else None,
        last_row_only=not ours and (logits.dims or ())[1:2] == (1,),
    )


def _names(decoder: dict[str, Any], key: str) -> dict[str, str]:
    value = decoder.get(key, {})
    return {k: v for k, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}


def _cache_names(names: dict[str, str], what: str, layers: int) -> tuple[tuple[str, ...], ...]:
    """Names per layer from genai's patterns such as past_key_values.%d.key."""
    default = "past_key_values" if what == "past" else "present"
    if f"{what}_names" in names:
        patterns = [names[f"{what}_names"]]
    else:
        patterns = [names.get(f"{what}_{part}_names", f"{default}.%d.{part}") for part in ("key", "value")]
    for pattern in patterns:
        if not re.fullmatch(r"[^%]*%d[^%]*", pattern):
            raise CorruptArtifact("genai_config.json", f"{what} names", pattern, "a name with one %d for the layer")
    return tuple(tuple(pattern.replace("%d", str(i)) for pattern in patterns) for i in range(layers))


def _check_types(
    folder: OnnxFolder, spec: ModelSpec, ids: OnnxValue, logits: OnnxValue, cache: list[OnnxValue]
) -> None:
    path = folder.model_path
    if ids.dtype not in ("int64", "int32"):
        raise CorruptArtifact(path, f"type of {ids.name}", ids.dtype, "int64 or int32")
    if logits.dtype not in ("float32", "float16"):
        raise UnsupportedArchitecture(f"{path}: logits are {logits.dtype}; float32 and float16 are supported")
    if logits.dims and isinstance(logits.dims[-1], int) and logits.dims[-1] != spec.vocab:
        raise CorruptArtifact(path, "last dimension of logits", logits.dims[-1], f"vocab_size {spec.vocab}")
    for value in cache:
        if value.dtype != cache[0].dtype or value.dtype not in ("float32", "float16"):
            raise UnsupportedArchitecture(f"{path}: {value.name} is {value.dtype}; float32 or float16 is supported")
        dims = value.dims or ()
        heads_at = 2 if len(dims) == 5 else 1
        if len(dims) not in (4, 5):
            raise CorruptArtifact(path, f"shape of {value.name}", dims, "[batch, kv heads, rows, head size]")
        wanted = {heads_at: spec.kv_heads, len(dims) - 1: spec.head_dim}
        for at, size in wanted.items():
            if isinstance(dims[at], int) and dims[at] != size:
                raise CorruptArtifact(path, f"shape of {value.name}", dims, f"{size} at dimension {at}")
