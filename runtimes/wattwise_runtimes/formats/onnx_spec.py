"""ModelSpec of an ONNX folder: from our own wattwise.json, or as far as a foreign genai_config.json tells.

A graph computes itself; a spec of a foreign folder only needs what the KV cache, the vocabulary and the limits
depend on. What genai_config.json does not say (RoPE, norms, activation) keeps its default and is used by nobody.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections import Counter
from pathlib import Path
from typing import Any

from wattwise_devices.errors import CorruptArtifact, UnsupportedArchitecture
from wattwise_runtimes.formats.json_file import read_json_object
from wattwise_runtimes.formats.onnx_file import CONFIG_NAME, OnnxFolder
from wattwise_runtimes.spec import ModelSpec, RopeSpec

RECORD_NAME = "wattwise.json"
_RECORD_VERSION = 1
_MAX_RECORD_BYTES = 16 << 20
_MAX_COUNT = 1 << 31


def wattwise_record(spec: ModelSpec, *, quant: str, version: str) -> dict[str, Any]:
    """Content of wattwise.json."""
    return {
        "format": _RECORD_VERSION,
        "wattwise": version,
        "quant": quant,
        "spec": spec.to_json(),
    }


def spec_from_onnx_folder(folder: str | Path) -> ModelSpec:
    """Spec of a folder; raises CorruptArtifact where its files contradict themselves."""
    folder = Path(folder)
    if (folder / RECORD_NAME).is_file():
        return _from_record(folder / RECORD_NAME)
    path = folder / CONFIG_NAME
    return _from_genai(read_json_object(path, 1 << 20), path)


def onnx_quant(folder: OnnxFolder) -> str:
    """Weight type: what wattwise.json names; for a foreign folder the type that holds most bytes."""
    path = folder.path / RECORD_NAME
    if path.is_file():
        value = read_json_object(path, _MAX_RECORD_BYTES).get("quant")
        if not isinstance(value, str):
            raise CorruptArtifact(path, "quant", value, "the name of a weight type")
        return value
    by_type: Counter[str] = Counter()
    for tensor in folder.model.initializers.values():
        by_type[tensor.dtype] += tensor.nbytes
    if not by_type:
        return ""
    commonest = by_type.most_common(1)[0][0]
    return {"float32": "fp32", "float": "fp32", "float16": "fp16", "uint8": "blocks"}.get(commonest, commonest)


def is_our_folder(folder: str | Path) -> bool:
    """Whether this converter wrote the folder."""
    return (Path(folder) / RECORD_NAME).is_file()


def _from_record(path: Path) -> ModelSpec:
    record = read_json_object(path, _MAX_RECORD_BYTES)
    if record.get("format") != _RECORD_VERSION:
        raise UnsupportedArchitecture(
            f"{path}: format {record.get('format')!r} is not known here (known: {_RECORD_VERSION})"
        )
    spec = _build(ModelSpec, record.get("spec"), path, "spec")
    _check(spec, path)
    return spec


def _from_genai(config: dict[str, Any], path: Path) -> ModelSpec:
    model = config.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        raise CorruptArtifact(path, "model.decoder", decoder, "an object")

    def count(where: dict[str, Any], key: str, default: int | None = None) -> int:
        value = where.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _MAX_COUNT:
            raise CorruptArtifact(path, key, value, f"a count from 1 to {_MAX_COUNT - 1}")
        return value

    def ids(key: str) -> tuple[int, ...]:
        value = model.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < _MAX_COUNT for i in listed):
            raise CorruptArtifact(path, key, value, "an id or a list of ids")
        return tuple(listed)

    kv_heads, head_dim = count(decoder, "num_key_value_heads"), count(decoder, "head_size")
    heads = count(decoder, "num_attention_heads", kv_heads)
    bos, pad = ids("bos_token_id"), ids("pad_token_id")
    window = decoder.get("sliding_window")
    spec = ModelSpec(
        architecture=str(model.get("type", "decoder")),
        layers=count(decoder, "num_hidden_layers"),
        hidden=count(decoder, "hidden_size", heads * head_dim),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=1,
        vocab=count(model, "vocab_size"),
        context=count(model, "context_length"),
        rope=RopeSpec(dims=head_dim),
        sliding_window=count(window, "window_size") if isinstance(window, dict) else None,
        bos_id=bos[0] if bos else None,
        eos_ids=ids("eos_token_id"),
        pad_id=pad[0] if pad else None,
        name=path.parent.name,
    )
    _check(spec, path)
    return spec


def _check(spec: ModelSpec, path: Path) -> None:
    """Sizes that later code multiplies and allocates by."""
    for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "context"):
        value = getattr(spec, name)
        if not 0 < value < _MAX_COUNT:
            raise CorruptArtifact(path, name, value, f"a count from 1 to {_MAX_COUNT - 1}")
    if spec.layers > 4096 or spec.head_dim > 4096 or spec.heads > 65536:
        raise CorruptArtifact(path, "layers, heads, head_dim", (spec.layers, spec.heads, spec.head_dim), "a real model")
    if spec.heads % spec.kv_heads:
        raise CorruptArtifact(path, "kv_heads", spec.kv_heads, f"a divisor of heads ({spec.heads})")
    if spec.sliding_window is not None and not 0 < spec.sliding_window < _MAX_COUNT:
        raise CorruptArtifact(path, "sliding_window", spec.sliding_window, f"a count from 1 to {_MAX_COUNT - 1}")
    if spec.rope is not None and (spec.rope.dims % 2 or not 0 < spec.rope.dims <= spec.head_dim):
        raise CorruptArtifact(path, "rope dims", spec.rope.dims, f"even, 2 to {spec.head_dim}")
    if spec.sliding_layers and len(spec.sliding_layers) != spec.layers:
        raise CorruptArtifact(path, "sliding_layers", len(spec.sliding_layers), spec.layers)


def _build(cls: type[Any], data: Any, path: Path, where: str) -> Any:
    """A spec dataclass from plain JSON; unknown, missing or ill-typed fields are refused by name."""
    if not isinstance(data, dict):
        raise CorruptArtifact(path, where, data, "an object")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise CorruptArtifact(path, where, unknown, f"fields of {cls.__name__}")
    required = {
        n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if required - set(data):
        raise CorruptArtifact(path, where, f"without {sorted(required - set(data))}", "all required fields")
    return cls(**{key: _value(hints[key], value, path, f"{where}.{key}") for key, value in data.items()})


def _value(hint: Any, value: Any, path: Path, where: str) -> Any:
    """`value` if JSON of this type; lists become tuples, whole numbers may stand for floats."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, path, where)
    if origin is typing.Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_value(args[0], item, path, where) for item in value)
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, path, where)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint in (int, bool, str) and type(value) is hint:
        return value
    raise CorruptArtifact(path, where, value, getattr(hint, "__name__", str(hint)))
