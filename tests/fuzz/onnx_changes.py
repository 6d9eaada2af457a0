"""Mutations of ONNX models at the level of their meaning: attributes, weights' shapes and values, wires.

The result is a sound file whose graph may be nonsense, which onnxruntime must refuse or run, not crash on.
"""

from __future__ import annotations

import random

import numpy as np
import onnx
from onnx import numpy_helper

_INTEGERS = (0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 63, 64, 65, 128, 256, 512, 1 << 20, (1 << 31) - 1, -(1 << 31),
             1 << 32, (1 << 63) - 1, -(1 << 63))  # fmt: skip
_FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e38)
_MORE = ("do_rotary", "local_window_size", "smooth_softmax", "rotary_interleaved", "is_packed_batching", "num_heads",
         "rotary_embedding_dim", "axis", "keepdims")  # fmt: skip


def mutate_onnx(model: onnx.ModelProto, rng: random.Random) -> bytes:
    """The model with one or two changes."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(rng.choice((1, 1, 2))):
        choice = rng.random()
        node = rng.choice(changed.graph.node)
        if choice < 0.5:
            node = rng.choice([n for n in changed.graph.node if n.attribute])
            attribute = rng.choice(node.attribute)
            if attribute.type == onnx.AttributeProto.INT:
                attribute.i = rng.choice(_INTEGERS)
            elif attribute.type == onnx.AttributeProto.FLOAT:
                attribute.f = rng.choice(_FLOATS)
        elif choice < 0.75:
            _change_weight(rng.choice(changed.graph.initializer), rng)
        elif choice < 0.9 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice([x for n in changed.graph.node for x in n.input])
        elif choice < 0.95 and node.input:
            node.input.pop()
        elif not any(a.name in _MORE for a in node.attribute):
            node.attribute.add(name=rng.choice(_MORE), type=onnx.AttributeProto.INT, i=rng.choice(_INTEGERS))
    return changed.SerializeToString()


def _change_weight(tensor: onnx.TensorProto, rng: random.Random) -> None:
    array = numpy_helper.to_array(tensor)
    choice = rng.random()
    if choice < 0.4 and array.dtype.kind == "i" and array.size:
        array = array.copy()
        array.flat[rng.randrange(array.size)] = rng.choice([n for n in _INTEGERS if abs(n) < 1 << 31])
    elif choice < 0.7 and array.ndim and len(array):
        array = array[: rng.randrange(len(array))]
    elif choice < 0.85 and array.ndim:
        array = np.concatenate([array, array])
    else:
        array = array.reshape(-1)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
