"""Changes to a checked graph in memory, before it is loaded: the weights in the data file are not touched.

Attention bias: every GroupQueryAttention gets a bias input, one for full and one for sliding-window layers; the
latter lose their window attribute, because it counts rows, which in a tree or after an eviction are not positions.

Measured on a 400M int4 Llama, 256 rows held: prefill and decode are as fast with the bias as without. It costs the
onnx package at load time, chunk x context numbers per kind of layer, and windowed layers look at the whole cache.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from wattwise_devices.errors import LoadError
from wattwise_runtimes.spec import ModelSpec

FULL_BIAS, WINDOW_BIAS = "attention_bias", "attention_bias_window"
_BIAS_AT = 10  # place of attention_bias among GroupQueryAttention's inputs


def with_attention_bias(model_path: Path, spec: ModelSpec) -> tuple[bytes, dict[str, int | None]]:
    """(the model's bytes, bias input -> window in tokens or None for full attention)."""
    onnx = _onnx()
    model = onnx.load(model_path, load_external_data=False)
    biases: dict[str, int | None] = {}
    element = model.graph.output[1].type.tensor_type.elem_type  # a present tensor: the operator's type
    for node in model.graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        window = _take_window(node)
        name = FULL_BIAS if window is None else WINDOW_BIAS
        biases[name] = window
        node.input.extend([""] * (_BIAS_AT - len(node.input)))
        node.input.append(name)
    for name in biases:
        dims = ["batch_size", 1, "sequence_length", "total_sequence_length"]
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, element, dims))
    return model.SerializeToString(), biases


def _take_window(node: Any) -> int | None:
    for i, attribute in enumerate(node.attribute):
        if attribute.name == "local_window_size":
            window = int(attribute.i)
            del node.attribute[i]
            return window if window > 0 else None
    return None


def _onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise LoadError(
            "tree_leaves needs the onnx package to add attention biases. Install it with: pip install onnx"
        ) from error
