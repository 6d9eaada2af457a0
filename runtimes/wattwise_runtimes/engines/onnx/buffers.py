"""Everything a session reads and writes, bound once: a decode step changes numbers in place and one shape.

onnxruntime gets pointers into numpy arrays, which live as long as this object.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wattwise_runtimes.engines.onnx.kv import OnnxKV
from wattwise_runtimes.engines.onnx.mask import HIDDEN, hide_outside_window, hide_siblings
from wattwise_runtimes.engines.onnx.scores import Scores
from wattwise_runtimes.engines.onnx.signature import Signature
from wattwise_runtimes.spec import ModelSpec

_NUMPY = {"float32": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32}


class Bound:
    """The inputs and outputs of one session over one KV cache.

    biases: names of bias inputs, window or None each. scores: where attention scores go, None without them.
    """

    def __init__(
        self, session: Any, signature: Signature, spec: ModelSpec, kv: OnnxKV, chunk: int,
        biases: dict[str, int | None], scores: Scores | None = None,
    ) -> None:  # fmt: skip
        self._signature, self._kv, self._vocab, self._scores = signature, kv, spec.vocab, scores
        self.binding = session.io_binding()
        self._ids = np.zeros(chunk, _NUMPY[signature.ids.dtype])
        self._positions = None if signature.positions is None else np.zeros(chunk, _NUMPY[signature.positions.dtype])
        self._ones = None if signature.mask is None else np.ones(kv.capacity_tokens, _NUMPY[signature.mask.dtype])
        self._rows = np.full(chunk, -1, np.int64)
        self._biases, self._hidden = biases, HIDDEN[signature.kv_dtype]
        self._bias = {name: np.zeros(chunk * kv.capacity_tokens, signature.kv_dtype) for name in biases}
        self._one_logit = np.zeros((1, spec.vocab), _NUMPY[signature.logits.dtype])
        self._bound_tokens, self._wanted = -1, -1
        self.want([-1])  # before the cache: logits are the first output
        for pasts, presents, layer in zip(signature.past, signature.present, kv.layers, strict=True):
            for past, present, part in zip(pasts, presents, layer, strict=True):
                self.binding.bind_input(past, "cpu", 0, part.dtype, part.shape, part.ctypes.data)
                self.binding.bind_output(present, "cpu", 0, part.dtype, part.shape, part.ctypes.data)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays here, the KV cache not included."""
        arrays = [self._ids, self._rows, self._one_logit, *self._bias.values()]
        arrays += [a for a in (self._positions, self._ones) if a is not None]
        return sum(a.nbytes for a in arrays)

    def choose_rope_table(self, long: bool) -> None:
        """Bind LongRoPE's table, once."""
        name = self._signature.rope_table
        if name is not None:
            self._table = np.array([int(long)], np.int64)
            self.binding.bind_input(name, "cpu", 0, np.int64, (1,), self._table.ctypes.data)

    def feed(self, tokens: np.ndarray, positions: np.ndarray, parents: Any = None) -> None:
        """Inputs of a run that appends these tokens."""
        n, total = len(tokens), self._kv.length + len(tokens)
        self._ids[:n] = tokens
        if self._positions is not None:
            self._positions[:n] = positions
        if n != self._bound_tokens:
            self._bind(self._signature.ids.name, self._ids, (1, n))
            if self._signature.positions is not None:
                self._bind(self._signature.positions.name, self._positions, (1, n))
            self._bound_tokens = n
        if self._signature.mask is not None:
            self._bind(self._signature.mask.name, self._ones, (1, total))
        if self._scores is not None:
            self._scores.bind(self.binding, n, total)
        for name, window in self._biases.items():
            self._feed_bias(name, window, positions, total, parents)

    def want(self, rows: list[int]) -> None:
        """Choose whose logits the next run computes (where the graph can choose), and where they go."""
        n = len(rows)
        self._rows[:n] = rows
        logits = self._signature.logits.name
        if n != 1:
            # Our graphs declare one row, as genai wants it; only an output that is not bound ahead may differ, and
            # the binding takes that of the last run for one.
            self.binding.bind_output(logits, "cpu")
        if n == self._wanted:
            return
        if self._signature.rows is not None:
            self._bind(self._signature.rows, self._rows, (n,))
        if n == 1:
            one = self._one_logit
            self.binding.bind_output(logits, "cpu", 0, one.dtype, (1, 1, self._vocab), one.ctypes.data)
        self._wanted = n

    def logits(self) -> np.ndarray:
        """Of the last run: [rows, vocab]; for one row our own array, valid until the next run."""
        if self._wanted == 1:
            return self._one_logit
        return self.binding.get_outputs()[0].numpy()[0]

    def _bind(self, name: str, array: Any, shape: tuple[int, ...]) -> None:
        self.binding.bind_input(name, "cpu", 0, array.dtype, shape, array.ctypes.data)

    def _feed_bias(self, name: str, window: int | None, positions: np.ndarray, total: int, parents: Any) -> None:
        n, flat = len(positions), self._bias[name]
        bias = flat[: n * total].reshape(n, total)
        bias.fill(0)
        if parents is not None:
            hide_siblings(bias, parents, self._hidden)
        if window is not None:
            rows = np.concatenate([self._kv.positions, positions])
            hide_outside_window(bias, positions, rows, window, self._hidden)
        self._bind(name, flat, (1, 1, n, total))
