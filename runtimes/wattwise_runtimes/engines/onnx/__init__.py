"""The ONNX engine: onnxruntime's CPU provider through IOBinding, KV cache in place.

backend.py    probe, estimate, load            limits.py     what a folder can do, refusals by name
session.py    onnxruntime itself, one thin cut signature.py  which graph this is, from its inputs and outputs
rewrite.py    biases, scores, codes            wire.py       a graph's file as fields, taken apart and joined
engine.py     forward: chains, trees, rows     buffers.py    arrays bound once
kv.py         keys and values in fixed buffers rows.py       which positions they hold, by head if need be
codec.py      numbers in 32, 16, 8 or 4 bits   calibration.py how large they get, for the scales of 8 and 4
scores.py     attention of the last chunk      turning.py    keys at other positions
mask.py       who sees whom, where the graph cannot say it
memory.py     the ledger, and its prediction   growing.py    old graphs whose cache grows by concatenation
mapped.py     the memory that loading leaves behind, put in order
"""

from wattwise_runtimes.engines.onnx.backend import BACKEND

__all__ = ["BACKEND"]
