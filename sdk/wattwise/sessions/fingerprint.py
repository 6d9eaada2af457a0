"""What saved rows belong to: the model's bytes, its tokenizer, how it encodes positions, the engine and its KV cache.

Rows are used again only where every part is the same. Threads and chunk sizes are no part of it: they change the last
bits of what is computed later, not what a row is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wattwise.planning import Plan
from wattwise.sessions.content import content_hash
from wattwise_devices.errors import CorruptArtifact
from wattwise_runtimes.kv_blob import spec_fingerprint
from wattwise_runtimes.registry import get_backend
from wattwise_runtimes.spec import ModelSpec
from wattwise_runtimes.text.tokenizer import Tokenizer
from wattwise_runtimes.text.vocabulary import Vocabulary

_NOT_OF_TOKENS = ("chat_template", "chat_templates")  # they shape the text, and the ids already say what came of it
_LONGEST = 1000  # characters of a part


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """model, tokenizer, spec, rope: hashes, hexadecimal. engine: name and version. kv_type, eviction: as in the plan.

    rope: of the angles that the engine turns by, which for LongRoPE depend on the context it was loaded with.
    """

    model: str
    tokenizer: str
    spec: str
    rope: str
    engine: str
    kv_type: str
    eviction: str

    def without_model(self) -> Fingerprint:
        """All that is known without reading the model's file."""
        return replace(self, model="")

    def differences(self, here: Fingerprint) -> str:
        """How rows that were saved with this differ from what is loaded, in words; empty where they fit."""
        told = {
            "model": "another model file", "tokenizer": "another tokenizer", "spec": "a model of another shape",
            "rope": "other position angles (the context was different)",
        }  # fmt: skip
        found: list[str] = []
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(here, field.name)
            if mine != theirs:
                word = field.name.replace("_", " ")
                found.append(told.get(field.name) or f"{word} {mine!r} where this has {theirs!r}")
        return ", ".join(found)

    @staticmethod
    def from_json(value: Any, where: object) -> Fingerprint:
        """From a file. Raises CorruptArtifact unless every part is a text of reasonable length."""
        names = {field.name for field in dataclasses.fields(Fingerprint)}
        if not isinstance(value, dict) or set(value) != names:
            raise CorruptArtifact(where, "fingerprint", value, f"an object with {', '.join(sorted(names))}")
        for name, part in value.items():
            if not isinstance(part, str) or len(part) > _LONGEST:
                raise CorruptArtifact(where, f"fingerprint {name}", part, f"a text of at most {_LONGEST} characters")
        return Fingerprint(**value)


def fingerprint(plan: Plan, tokenizer: Tokenizer | None) -> Fingerprint:
    """Of a loaded model, `model` left empty; `model_hash` has it, and may have to read the whole file."""
    capability = get_backend(plan.engine).probe()
    spec, load = plan.artifact.spec, plan.load_spec()
    return Fingerprint(
        model="",
        tokenizer=_tokenizer_hash(tokenizer.vocabulary) if tokenizer is not None else "none",
        spec=spec_fingerprint(spec),
        rope=_rope_hash(spec, load.context),
        engine=f"{plan.engine} {capability.version if capability is not None else 'gone'}",
        kv_type=load.kv_type,
        eviction=json.dumps(plan.eviction.to_json(), sort_keys=True) if plan.eviction is not None else "none",
    )


def model_hash(plan: Plan) -> str:
    """Of the bytes of the model's file or folder, read at most once. Raises OSError."""
    return content_hash(plan.artifact.path)


def _tokenizer_hash(vocabulary: Vocabulary) -> str:
    digest = hashlib.sha256()
    for field in dataclasses.fields(vocabulary):
        if field.name in _NOT_OF_TOKENS:
            continue
        value = getattr(vocabulary, field.name)
        parts = sorted(value) if isinstance(value, frozenset) else value if isinstance(value, tuple) else (value,)
        digest.update(f"{field.name} {len(parts)}\n".encode())
        digest.update("\0".join(map(str, parts)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _rope_hash(spec: ModelSpec, context: int) -> str:
    if spec.rope is None:
        return "learned"
    turns = [spec.rope.inverse_frequencies(context=context, local=local) for local in (False, True)]
    angles = np.concatenate([*turns, [spec.rope.attention_factor]]).astype("<f4")
    return hashlib.sha256(angles.tobytes()).hexdigest()[:16]
