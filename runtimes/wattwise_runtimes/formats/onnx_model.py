"""ONNX model files, checked by our own code before onnx or onnxruntime sees them.

Checked: the protobuf structure (lengths, nesting, sizes), names, every tensor's shape against its bytes, and external
data: files inside the model's folder, ranges inside those files. Not checked: whether the graph computes something
sensible; onnxruntime refuses ill-typed graphs itself, with an ordinary error. Features that no decoder of ours needs
and that add ways to fail (model-local functions, sparse initializers, training, EPContext blobs) are refused by name.
Format: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wattwise_devices.errors import UnsupportedArchitecture
from wattwise_runtimes.formats.checked import Data, mapped
from wattwise_runtimes.formats.onnx_tensor import DTYPES, ExternalFiles, OnnxTensor, parse_tensor
from wattwise_runtimes.formats.protobuf import BYTES, VARINT, Message, signed

MAX_MODEL_BYTES = (1 << 31) - 1  # protobuf's own limit; weights beyond it are external
MAX_NODES = 1 << 18
MAX_TENSORS = 1 << 18
MAX_SUBGRAPH_DEPTH = 6
MAX_DIMS = 32
MAX_VALUES = 8192  # inputs or outputs of one graph
MAX_NAME_BYTES = 4096
IR_VERSIONS = range(3, 15)
MAX_OPSET = 1 << 16

__all__ = ["OnnxFile", "OnnxTensor", "OnnxValue", "parse_onnx", "read_onnx"]


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """A graph input or output. dims: a number, a symbolic name, or None where the file says nothing."""

    name: str
    dtype: str
    dims: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """What a checked ONNX file holds. opsets: domain -> version ("" is ONNX itself). ops: (domain, type) -> nodes,
    subgraphs included. external_files: every file beside the model that holds weights."""

    path: Path
    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    initializers: Mapping[str, OnnxTensor]
    ops: Counter[tuple[str, str]]
    metadata_props: Mapping[str, str]
    external_files: tuple[Path, ...] = ()

    @property
    def weights_bytes(self) -> int:
        """Bytes of all initializers of the main graph."""
        return sum(tensor.nbytes for tensor in self.initializers.values())


@dataclass(slots=True)
class _Walk:
    """What is counted over the whole model while walking it."""

    files: ExternalFiles
    ops: Counter[tuple[str, str]] = field(default_factory=Counter)
    nodes: int = 0
    tensors: int = 0

    def tensor(self, message: Message, what: str) -> OnnxTensor:
        self.tensors += 1
        if self.tensors > MAX_TENSORS:
            raise message.fail("number of tensors", self.tensors, f"at most {MAX_TENSORS}")
        return parse_tensor(message.named(what), self.files)


@dataclass(slots=True)
class _Graph:
    inputs: dict[str, OnnxValue] = field(default_factory=dict)
    outputs: dict[str, OnnxValue] = field(default_factory=dict)
    initializers: dict[str, OnnxTensor] = field(default_factory=dict)


def read_onnx(path: str | Path) -> OnnxFile:
    """Open and check an ONNX file and the external data that it refers to."""
    path = Path(path)
    with mapped(path) as data:
        return parse_onnx(data, path)


def parse_onnx(data: Data, path: Path) -> OnnxFile:
    """Check the bytes of one ONNX file; external data is looked for beside `path`."""
    model = Message(data, path, "model", 0, len(data))
    if len(data) > MAX_MODEL_BYTES:
        raise model.fail("size in bytes", len(data), f"at most {MAX_MODEL_BYTES}")
    walk = _Walk(ExternalFiles(path))
    ir_version, graph, opsets, props = 0, None, dict[str, int](), dict[str, str]()
    wires = {1: VARINT, 7: BYTES, 8: BYTES, 14: BYTES, 20: BYTES, 25: BYTES}
    for number, value in model.fields(wires, single=(1, 7)):
        if isinstance(value, int):
            ir_version = signed(value)
        elif number == 7:
            graph = _graph(value.named("graph"), walk, depth=0)
        elif number == 8:
            _opset(value.named("opset_import"), opsets)
        elif number == 14:
            _property(value.named("metadata_props"), props)
        else:
            raise _unsupported(path, {20: "training information", 25: "model-local functions"}.get(number, "packing"))
    if ir_version not in IR_VERSIONS:
        raise model.fail("ir_version", ir_version, f"{IR_VERSIONS[0]} to {IR_VERSIONS[-1]}")
    if graph is None:
        raise model.fail("graph", "missing", "one graph")
    if not opsets:
        raise model.fail("opset_import", "missing", "at least one")
    return OnnxFile(
        path=path, ir_version=ir_version, opsets=opsets, inputs=tuple(graph.inputs.values()),
        outputs=tuple(graph.outputs.values()),
        initializers=graph.initializers, ops=walk.ops, metadata_props=props, external_files=walk.files.opened(),
    )  # fmt: skip


def _unsupported(path: Path, what: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"{path} has {what}, which wattwise does not load. Export the model again without, or convert it with "
        "`wattwise convert`."
    )


def _opset(message: Message, opsets: dict[str, int]) -> None:
    domain, version = "", 0
    for _, value in message.fields({1: BYTES, 2: VARINT}, single=(1, 2)):
        if isinstance(value, int):
            version = signed(value)
        else:
            domain = value.named("opset_import domain").text(MAX_NAME_BYTES)
    domain = "" if domain == "ai.onnx" else domain
    if domain in opsets:
        raise message.fail("domain", domain, "not used twice")
    if not 1 <= version <= MAX_OPSET:
        raise message.fail(f"version of {domain!r}", version, f"1 to {MAX_OPSET}")
    opsets[domain] = version


def _property(message: Message, props: dict[str, str]) -> None:
    key = text = ""
    for number, value in message.fields({1: BYTES, 2: BYTES}, single=(1, 2)):
        if isinstance(value, Message):
            if number == 1:
                key = value.named("metadata_props key").text(MAX_NAME_BYTES)
            else:
                text = value.named("metadata_props value").text(1 << 24)
    if key in props:
        raise message.fail("key", key, "not used twice")
    props[key] = text


def _graph(message: Message, walk: _Walk, depth: int) -> _Graph:
    if depth > MAX_SUBGRAPH_DEPTH:
        raise message.fail("nesting of graphs", depth, f"at most {MAX_SUBGRAPH_DEPTH}")
    graph = _Graph()
    wires = {1: BYTES, 5: BYTES, 11: BYTES, 12: BYTES, 13: BYTES, 15: BYTES}
    for number, value in message.fields(wires):
        if isinstance(value, int):
            continue
        if number == 1:
            _node(value.named("node"), walk, depth)
        elif number == 5:
            tensor = walk.tensor(value, "initializer")
            if not tensor.name or tensor.name in graph.initializers:
                raise value.fail("name of an initializer", tensor.name, "a name, not used twice")
            graph.initializers[tensor.name] = tensor
        elif number == 15:
            raise _unsupported(message.path, "sparse initializers")
        else:
            _value(value, number, graph, depth)
    return graph


def _value(message: Message, number: int, graph: _Graph, depth: int) -> None:
    """An input (11), an output (12) or an intermediate value (13), whose types matter only where we bind to them."""
    what = {11: "graph input", 12: "graph output", 13: "value_info"}[number]
    info = _value_info(message.named(what), need_tensor=depth == 0 and number != 13)
    if number == 13:
        return
    values = graph.inputs if number == 11 else graph.outputs
    if info.name in values:
        raise message.fail(f"name of a {what}", info.name, "not used twice")
    if len(values) == MAX_VALUES:
        raise message.fail(f"number of {what}s", len(values) + 1, f"at most {MAX_VALUES}")
    values[info.name] = info


def _node(message: Message, walk: _Walk, depth: int) -> None:
    walk.nodes += 1
    if walk.nodes > MAX_NODES:
        raise message.fail("number of nodes", walk.nodes, f"at most {MAX_NODES}")
    kind = domain = ""
    attributes: list[Message] = []
    for number, value in message.fields({1: BYTES, 2: BYTES, 3: BYTES, 4: BYTES, 5: BYTES, 7: BYTES}, single=(3, 4, 7)):
        if isinstance(value, int):
            continue
        if number == 5:
            attributes.append(value.named("attribute"))
            continue
        text = value.text(MAX_NAME_BYTES)
        if number == 4:
            kind = text
        elif number == 7:
            domain = "" if text == "ai.onnx" else text
    if not kind:
        raise message.fail("op_type", kind, "a name")
    if kind == "EPContext":
        raise _unsupported(message.path, "EPContext nodes (compiled blobs of one device)")
    walk.ops[domain, kind] += 1
    for attribute in attributes:
        _attribute(attribute.named(f"attribute of {kind}"), walk, depth, small=domain == "com.microsoft")


def _attribute(message: Message, walk: _Walk, depth: int, *, small: bool) -> None:
    """small: whole numbers must fit 32 bits; onnxruntime's own operators cut them to that, and divide by the rest."""
    wires = dict.fromkeys((1, 5, 6, 10, 11, 14, 15, 22, 23), BYTES) | {3: VARINT, 8: VARINT}
    for number, value in message.fields(wires, single=(1, 3, 5, 6, 14, 22)):
        if isinstance(value, int) or number in (3, 8):
            if small:
                _check_32_bits(message, [value] if isinstance(value, int) else value.packed())
        elif number == 1:
            value.named("attribute name").text(MAX_NAME_BYTES)
        elif number in (5, 10):
            walk.tensor(value, "tensor attribute")
        elif number in (6, 11):
            _graph(value.named("subgraph"), walk, depth + 1)
        else:
            raise _unsupported(message.path, "attributes of sparse tensors or types")


def _check_32_bits(message: Message, numbers: Iterable[int]) -> None:
    for number in map(signed, numbers):
        if not -(1 << 31) <= number < 1 << 31:
            raise message.fail("whole number", number, "32 bits")


def _value_info(message: Message, *, need_tensor: bool) -> OnnxValue:
    name, kind = "", None
    for number, value in message.fields({1: BYTES, 2: BYTES}, single=(1, 2)):
        if isinstance(value, Message):
            if number == 1:
                name = value.text(MAX_NAME_BYTES)
            else:
                kind = value
    if not name and need_tensor:
        raise message.fail("name", name, "a name")
    dtype, dims = ("", None) if kind is None else _type(kind.named(f"type of {name!r}"))
    if need_tensor and not dtype:
        raise message.fail(f"type of {name!r}", "no tensor", "a tensor with an element type")
    return OnnxValue(name, dtype, dims)


def _type(message: Message) -> tuple[str, tuple[int | str | None, ...] | None]:
    """Element type and dimensions; other kinds of values (sequences, maps) are refused."""
    dtype, dims = "", None
    for number, value in message.fields({1: BYTES, 4: BYTES, 5: BYTES, 8: BYTES, 9: BYTES}, single=(1, 4, 5, 8, 9)):
        if number != 1 or isinstance(value, int):
            raise _unsupported(message.path, "values that are not tensors (sequences, maps, optionals)")
        for inner, item in value.fields({1: VARINT, 2: BYTES}, single=(1, 2)):
            if isinstance(item, int):
                if item not in DTYPES:
                    raise message.fail("elem_type", item, f"one of {', '.join(map(str, DTYPES))}")
                dtype = DTYPES[item][0]
            elif inner == 2:
                dims = _dims(item.named(message.what))
    return dtype, dims


def _dims(message: Message) -> tuple[int | str | None, ...]:
    dims: list[int | str | None] = []
    for _, dim in message.fields({1: BYTES}):
        if len(dims) == MAX_DIMS or isinstance(dim, int):
            raise message.fail("number of dimensions", len(dims) + 1, f"at most {MAX_DIMS}")
        size: int | str | None = None
        for _, value in dim.fields({1: VARINT, 2: BYTES}, single=(1, 2)):
            if isinstance(value, int):
                size = signed(value)
                if size < 0:
                    raise message.fail("dimension", size, "0 or more")
            else:
                size = value.named("dim_param").text(MAX_NAME_BYTES)
        dims.append(size)
    return tuple(dims)
