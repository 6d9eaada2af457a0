"""What is fuzzed: for each reader, tiny seed files and the call that must end well or in a typed error."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import resource
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from fuzz.drafts import draft_of, mutate_draft
from fuzz.mutate import Mutator
from fuzz.native_probe import Library
from fuzz.onnx_changes import mutate_onnx
from fuzz.tiny_gguf import Draft, bpe_vocab, llama_model
from support.gguf_files import write_tiny_gguf
from support.onnx_folders import write_onnx_folder
from support.specs import TINY_SPECS, random_weights
from wattwise.kv.held_state import HeldState
from wattwise.sessions.blobs import Blob
from wattwise.sessions.fingerprint import Fingerprint
from wattwise.sessions.index import RowsIndex, Segment, index_bytes, parse_index
from wattwise_devices.errors import Error
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine
from wattwise_runtimes.formats.gguf import parse_gguf
from wattwise_runtimes.formats.gguf_llama import validate_for_llama
from wattwise_runtimes.formats.gguf_spec import canonical_tensors, spec_from_gguf
from wattwise_runtimes.formats.json_file import parse_json
from wattwise_runtimes.formats.onnx_file import parse_onnx
from wattwise_runtimes.formats.safetensors import parse_safetensors
from wattwise_runtimes.formats.tokenizer_json import check_tokenizer_data
from wattwise_runtimes.text.gguf_vocab import vocabulary_from_gguf
from wattwise_runtimes.text.hf_json import vocabulary_from_json
from wattwise_runtimes.text.tokenizer import Tokenizer, check_vocabulary
from wattwise_runtimes.text.vocabulary import Vocabulary


@dataclass
class Target:
    """One reader under test. head: how many leading bytes hold the structure (mutations mostly go there)."""

    name: str
    seeds: list[bytes]
    run: Callable[[bytes], None]
    text: bool = False
    head: int = 4000
    make: Callable[[random.Random], bytes] | None = None  # another source of inputs than byte mutations

    def inputs(self, rng: random.Random) -> Callable[[], bytes]:
        """A function that gives one input after the other."""
        if self.make is not None:
            return lambda make=self.make: make(rng)
        return Mutator(self.seeds, rng, text=self.text, head=self.head).make


@dataclass
class Outcome:
    """What became of a run. failures: (input, exception) that should not have been."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    grown_bytes: int = 0
    failures: list[tuple[bytes, BaseException]] = field(default_factory=list)


def fuzz(target: Target, rng: random.Random, *, inputs: int | None = None, seconds: float = 0.0) -> Outcome:
    """Run mutated seeds, a number of them or for a time. CPU time is measured, so a busy machine does not matter."""
    outcome, make = Outcome(), target.inputs(rng)
    for seed in target.seeds:
        target.run(seed)  # must be accepted, else the fuzzing would test nothing
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    end = time.monotonic() + seconds
    while outcome.inputs < inputs if inputs is not None else time.monotonic() < end:
        data = make()
        started = time.thread_time()
        try:
            target.run(data)
            outcome.accepted += 1
        except Error:
            outcome.refused += 1
        except Exception as error:
            outcome.failures.append((data, error))
        outcome.slowest_s = max(outcome.slowest_s, time.thread_time() - started)
        outcome.inputs += 1
    outcome.grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return outcome


def targets(folder: Path) -> list[Target]:
    """All readers with small seeds; `folder` gets the files that they refer to."""
    gguf = _gguf(folder)
    model, text = _model(folder, gguf.seeds[:1]), _text(folder)
    rows = [_session_index(folder), _kv_rows()]
    return [gguf, model, _safetensors(folder), _onnx(folder), _json(folder), _tokenizer(folder), text, *rows]


def _gguf(folder: Path) -> Target:
    drafts = [llama_model(vocab=16, hidden=32, ffn=32), Draft(fields=dict(bpe_vocab(16)))]
    drafts[1].fields |= {"general.architecture": ("gpt2", 8), "list": ([1, 2, 3], (9, 5)), "flag": (True, 7)}
    seeds = [draft.write(folder / f"seed{i}.gguf").read_bytes() for i, draft in enumerate(drafts)]

    def run(data: bytes) -> None:
        file = parse_gguf(data, folder / "fuzzed.gguf")
        for tensor in file.tensors.values():  # what a reader would slice
            if not 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= len(data):
                raise AssertionError(f"{tensor} outside {len(data)} bytes")
        if len(file.tensors):
            validate_for_llama(file)

    return Target("gguf", seeds, run, head=2600)


def _model(folder: Path, seeds: list[bytes]) -> Target:
    """What the planner and the engines make of a GGUF file: sizes, canonical weights, a tokenizer."""
    path = folder / "model.gguf"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        file = parse_gguf(data, path)
        for tensor in canonical_tensors(file, spec_from_gguf(file)).values():
            with np.errstate(all="ignore"):  # weights may be anything
                tensor.read_rows(0, 1)
        _use(vocabulary_from_gguf(file.fields, path))

    return Target("model", seeds, run, head=2600)


def _use(vocabulary: Vocabulary) -> None:
    """Encode and decode a text with every kind of character."""
    check_vocabulary(vocabulary)
    tokenizer = Tokenizer(vocabulary)
    tokenizer.decode(tokenizer.encode("abab", bos=True))
    with suppress(Error):  # a vocabulary that lacks bytes says so
        text = "a b ab  aba\n\u00e9\u2581\U0001f600\0<s>"
        tokenizer.decode(tokenizer.encode(text, parse_special=True))


def native_targets(folder: Path) -> list[tuple[Library, str, Target]]:
    """(library, its module, seeds and our check) for files that a native library opens after our check."""
    checked = {target.name: target for target in targets(folder)}
    paths = [folder / "seed0.gguf"]
    for name, spec in TINY_SPECS.items():
        paths.append(write_tiny_gguf(folder / f"{name}.gguf", spec, random_weights(spec)))
    run = _validate_gguf(folder)
    return [
        ("llama", "llama_cpp", Target("llama", [path.read_bytes() for path in paths], run)),
        ("llama", "llama_cpp", Target("llama-fields", [], run, make=_changed_models(folder, paths))),
        ("onnx", "onnxruntime", replace(checked["onnx"], name="onnxruntime")),
        ("onnx", "onnxruntime", Target("onnx-fields", [], checked["onnx"].run, make=_changed_graphs(folder))),
        ("tokenizers", "tokenizers", replace(checked["tokenizer"], name="tokenizers")),
    ]


def _changed_models(folder: Path, paths: list[Path]) -> Callable[[random.Random], bytes]:
    """Models with other fields and tensors: sound files whose meaning is wrong."""
    drafts = [draft_of(path) for path in paths]
    drafts.append(copy.deepcopy(drafts[0]))
    for key in [key for key in drafts[-1].fields if key.startswith("tokenizer.")]:
        del drafts[-1].fields[key]
    drafts[-1].fields |= bpe_vocab(16)

    def make(rng: random.Random) -> bytes:
        draft = rng.choice(drafts)
        while True:
            try:
                changed = mutate_draft(Draft(dict(draft.fields), dict(draft.tensors)), rng)
                return changed.write(folder / "changed.gguf").read_bytes()
            except (ValueError, TypeError, struct.error):  # the writer cannot write it; take another
                continue

    return make


def _changed_graphs(folder: Path) -> Callable[[random.Random], bytes]:
    """Quantised decoders with other attributes, weights and wires; their data stands in the file."""
    models = []
    for quant in ("int4", "fp32"):
        write_onnx_folder(folder / quant, TINY_SPECS["llama"], random_weights(TINY_SPECS["llama"]), quant=quant)
        models.append(onnx.load(folder / quant / "model.onnx"))
        for tensor in models[-1].graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))

    return lambda rng: mutate_onnx(rng.choice(models), rng)


def _validate_gguf(folder: Path) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        validate_for_llama(parse_gguf(data, folder / "fuzzed.gguf"))

    return run


def _safetensors(folder: Path) -> Target:
    seed = save({"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(5, np.float16), "n": np.arange(2)}, {"k": "v"})

    def run(data: bytes) -> None:
        file = parse_safetensors(data, folder / "fuzzed.safetensors")
        for info in file.tensors.values():
            if not 8 <= info.start <= info.start + info.nbytes <= len(data):
                raise AssertionError(f"{info} outside {len(data)} bytes")

    return Target("safetensors", [seed], run, text=True)


def tiny_onnx(external: Path | None = None) -> bytes:
    """A two-node ONNX model with a subgraph; with `external`, one weight is put into that file."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "inner", [], [helper.make_tensor_value_info("y", 1, [None])]
    )
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    typed = helper.make_tensor("t", TensorProto.INT64, [3], [1, 2, 300])
    if external is not None:
        external.write_bytes(bytes(64))
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", external.name), ("offset", "8"), ("length", "24")):
            weight.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="m"),
        helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(2, np.float16))),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, ["n", 2]), value("c", 9, [])], [value("z", 1, ["n", 3])], [weight, typed]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model.metadata_props.add(key="a", value="b")
    return model.SerializeToString()


def _onnx(folder: Path) -> Target:
    seeds = [tiny_onnx(), tiny_onnx(folder / "weights.bin")]
    onnx.checker.check_model(onnx.load_from_string(seeds[0]))

    def run(data: bytes) -> None:
        model = parse_onnx(data, folder / "fuzzed.onnx")
        for tensor in model.initializers.values():
            if tensor.location is not None and not tensor.location.resolve().is_relative_to(folder.resolve()):
                raise AssertionError(f"{tensor} outside the folder")

    return Target("onnx", seeds, run)


def _json(folder: Path) -> Target:
    value = {"a": [1, 2.5, "x\u00e9", None, True], "b": {"c": [[[]]]}, "big": 2**62, "s": '\\ " \n'}
    seeds = [json.dumps(value).encode(), json.dumps(value, ensure_ascii=False, indent=1).encode()]

    def run(data: bytes) -> None:
        json.dumps(parse_json(data, folder / "fuzzed.json"), ensure_ascii=False, allow_nan=False).encode()

    return Target("json", seeds, run, text=True)


def _session_index(folder: Path) -> Target:
    """Indexes of saved sessions behind their checksum, which is made to fit: what a hostile writer would do."""
    mark = Fingerprint(model="m", tokenizer="t", spec="s", rope="r", engine="e", kv_type="f32", eviction="none")
    segment = Segment(blob=Blob(name="0" * 64, nbytes=9), start=0, stop=3)
    states = [
        HeldState(ids=np.arange(3, dtype=np.int32), rows=3),
        HeldState(ids=np.arange(9, dtype=np.int32), rows=3, tokens=np.asarray([0, 4, 8]), evicted=6),
    ]
    indexes = [RowsIndex(fingerprint=mark, state=state, segments=(segment,)) for state in states]
    indexes.append(replace(indexes[1], attention=segment.blob, queries=2))

    def run(data: bytes) -> None:
        index = parse_index(data + hashlib.sha256(data).digest(), folder / "rows.index")
        index.state.check(vocab=100, by_head=False)

    return Target("session-index", [index_bytes(index)[:-32] for index in indexes], run, head=700)


def _kv_rows() -> Target:
    """Exported rows behind their checksum, restored into the reference engine."""
    spec = TINY_SPECS["llama"]
    load = LoadSpec(context=16, chunk=16, kv_type="f32")
    engine = ReferenceEngine(spec, random_weights(spec), load)
    engine.forward(Batch(list(range(3, 9))))
    whole = engine.kv.export()
    keep = np.broadcast_to(np.asarray([0, 2, 5]), (spec.layers, spec.kv_heads, 3)).copy()
    keep[1, 1] = [1, 3, 5]
    engine.kv.drop_by_head(keep)

    def run(data: bytes) -> None:
        start = 12 + (struct.unpack_from("<I", data, 8)[0] if len(data) >= 12 else 0)
        crc = zlib.crc32(data[start + 4 :], zlib.crc32(data[12:start]))
        engine.kv.clear()
        engine.kv.restore(data[:start] + struct.pack("<I", crc) + data[start + 4 :])

    return Target("kv-rows", [whole, engine.kv.export()], run, head=200)


def _tokenizer(folder: Path) -> Target:
    value = {
        "version": "1.0",
        "added_tokens": [{"id": 4, "content": "<s>", "special": True}],
        "normalizer": {"type": "Prepend", "prepend": "_"},
        "padding": {"strategy": {"Fixed": 8}, "pad_to_multiple_of": 4},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "aba": 3}, "merges": ["a b", ["ab", "a"]]},
    }
    unigram = {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]}}

    def run(data: bytes) -> None:
        path = folder / "tokenizer.json"
        check_tokenizer_data(parse_json(data, path), path)

    return Target("tokenizer", [json.dumps(v).encode() for v in (value, unigram)], run, text=True)


def _text(folder: Path) -> Target:
    """From the bytes of a tokenizer.json to encoding with it: byte fallback and byte-level BPE."""
    special = {"content": "<s>", "special": True, "lstrip": False, "single_word": False}
    steps = [{"type": "Prepend", "prepend": "\u2581"},
             {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]  # fmt: skip
    spm = {
        "added_tokens": [special | {"id": 0}],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
        "model": {
            "type": "BPE", "byte_fallback": True, "unk_token": "<s>",
            "vocab": {"<s>": 0, "<0xC3>": 1, "a": 2, "b": 3, "\u2581": 4, "ab": 5, "\u2581a": 6},
            "merges": ["a b", ["\u2581", "a"]],
        },
    }  # fmt: skip
    letters = {chr(c): i for i, c in enumerate(range(97, 123))}
    bpe = {
        "added_tokens": [special | {"id": 28}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": letters | {"\u0120": 26, "ab": 27}, "merges": ["a b"]},
    }
    path = folder / "tokenizer.json"

    def run(data: bytes) -> None:
        content = check_tokenizer_data(parse_json(data, path), path)
        _use(vocabulary_from_json(content, str(path)))

    return Target("text", [json.dumps(v).encode() for v in (spm, bpe)], run, text=True)
