"""llama.cpp's own samplers over one row of logits, through ctypes: the independent reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def run_chain(
    logits: np.ndarray, make: Sequence[Callable[[Any], Any]], history: Sequence[int] = ()
) -> dict[int, float]:
    """Token -> probability after the samplers that `make` builds and a final draw's softmax."""
    import llama_cpp.llama_cpp as lib

    size = len(logits)
    data = (lib.llama_token_data * size)()
    table = np.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(ctypes.c_byte)), (size * 12,)).view(
        [("id", "<i4"), ("logit", "<f4"), ("p", "<f4")]
    )
    table["id"] = np.arange(size)
    table["logit"] = logits
    array = lib.llama_token_data_array(data=data, size=size, selected=-1, sorted=False)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for build in make:
        lib.llama_sampler_chain_add(chain, build(lib))
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(1))
    for token in history:
        lib.llama_sampler_accept(chain, token)
    lib.llama_sampler_apply(chain, ctypes.byref(array))
    out = {array.data[i].id: array.data[i].p for i in range(array.size)}
    lib.llama_sampler_free(chain)
    return out


def logit_bias(bias: dict[int, float], size: int) -> Callable[[Any], Any]:
    """Builder of the logit bias sampler."""

    def build(lib: Any) -> Any:
        items = (lib.llama_logit_bias * len(bias))(*((token, value) for token, value in bias.items()))
        return lib.llama_sampler_init_logit_bias(size, len(bias), items)

    return build
