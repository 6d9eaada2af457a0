"""The ONNX engine: onnxruntime's CPU provider through IOBinding, KV cache in place.

backend.py    probe, estimate, load            signature.py  which graph this is, from its inputs and outputs
session.py    onnxruntime itself, one thin cut engine.py     forward: chains, trees, chosen rows
buffers.py    arrays bound once                kv.py         keys and values in fixed buffers
rewrite.py    attention bias, KV type          growing.py    old graphs whose cache grows by concatenation
memory.py     the ledger, and its prediction   mask.py       who sees whom, where the graph cannot say it
"""

from wattwise_runtimes.engines.onnx.backend import BACKEND

__all__ = ["BACKEND"]
