"""The forward pass of the reference engine: chains, trees, holes, all by one visibility rule.

A token sees a row if the row is earlier in position (or itself), inside the sliding window where the layer has
one, and, for tree nodes, an ancestor. Everything else is `maths.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wattwise_devices.errors import BackendError, ContextOverflow
from wattwise_runtimes.contracts import (
    Batch,
    Capabilities,
    ForwardCancelled,
    Ledger,
    LoadSpec,
    refuse_thread_change,
)
from wattwise_runtimes.engines.reference import maths
from wattwise_runtimes.engines.reference.kv import ReferenceKV
from wattwise_runtimes.spec import ModelSpec
from wattwise_runtimes.trees import ancestors


def capabilities(spec: ModelSpec, load: LoadSpec) -> Capabilities:
    """Everything that the contract knows, but moving keys of models whose positions are learned."""
    return Capabilities(
        tree_tokens=load.context, drop="head", keys=True, attention=True, export=True, shift=spec.rope is not None
    )


class ReferenceEngine:
    """Engine over canonical float32 weights (see `spec.py` for names and layouts)."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, np.ndarray], load: LoadSpec) -> None:
        for name, shape in spec.tensor_shapes().items():
            if name not in weights or tuple(weights[name].shape) != shape:
                found = tuple(weights[name].shape) if name in weights else "nothing"
                raise ValueError(f"weight {name} must have shape {shape}, found {found}")
        self.spec = spec
        self.capabilities = capabilities(spec, load)
        self.kv = ReferenceKV(spec, load.context, self._turned if spec.rope is not None else None)
        self._w = weights
        self._load = load
        self._closed = False
        rope = spec.rope
        self._inv_freq: dict[bool, np.ndarray] = {}
        if rope is not None:
            for local in (False, True):
                self._inv_freq[local] = rope.inverse_frequencies(context=load.context, local=local)

    def forward(self, batch: Batch, cancelled: Callable[[], bool] | None = None) -> np.ndarray:
        if self._closed:
            raise BackendError("this engine is closed")
        self.kv.check_no_tree()
        tokens = np.asarray(batch.tokens, np.int64)
        if tokens.size == 0 or tokens.min() < 0 or tokens.max() >= self.spec.vocab:
            raise ValueError(f"token ids must be 0..{self.spec.vocab - 1} and at least one, got {tokens[:8].tolist()}")
        if self.kv.length + len(tokens) > self.kv.capacity_tokens:
            raise ContextOverflow(prompt_tokens=len(tokens), limit=self.kv.capacity_tokens, held_tokens=self.kv.length)
        wanted = batch.logit_rows()
        positions = self.kv.next_position + np.asarray(batch.depths())
        if batch.parents is not None:
            hidden = self._run(tokens, positions, ancestors(batch.parents))
            return self._head(hidden[wanted])
        rows: list[np.ndarray] = []
        for start in range(0, len(tokens), self._load.chunk):
            if cancelled is not None and cancelled():
                raise ForwardCancelled(start)
            part = slice(start, min(start + self._load.chunk, len(tokens)))
            hidden = self._run(tokens[part], positions[part], None)
            rows.append(hidden[[w - start for w in wanted if part.start <= w < part.stop]])
        return self._head(np.concatenate(rows))

    def set_threads(self, threads: int, threads_batch: int | None = None) -> None:
        """numpy decides by itself."""
        raise refuse_thread_change("reference")

    def nbytes(self) -> Ledger:
        return Ledger(weights=sum(w.nbytes for w in self._w.values()), kv=self.kv.nbytes)

    def where(self) -> dict[str, Any]:
        return {"prefill": "cpu", "decode": "cpu", "library": f"numpy {np.__version__}"}

    def close(self) -> None:
        self._closed = True
        self._w = {}

    def _run(self, tokens: np.ndarray, positions: np.ndarray, among: np.ndarray | None) -> np.ndarray:
        """Hidden states [T, E] after the last norm; writes the rows to the KV store.

        among: bool [T, T], which tokens of this call each token sees; None for a chain.
        """
        s, w = self.spec, self._w
        rows = self.kv.append(positions, tree=among is not None)
        self.kv.attention = []
        if among is None:
            among = np.tril(np.ones((len(tokens), len(tokens)), bool))
        old = np.ones((len(tokens), rows.start), bool)
        visible = np.concatenate([old, among], axis=1)  # [T, S]
        x = w["token_embd.weight"][tokens] * np.float32(s.embed_scale)
        if s.rope is None:
            x = x + w["position_embd.weight"][positions]
        for i in range(s.layers):
            seen = visible
            if s.is_sliding(i) and s.sliding_window:
                distance = positions[:, None] - self.kv.positions_of(i)[:, None, :]  # [K, T, S]
                seen = visible & (distance < s.sliding_window)
            a = self._attention(i, self._norm(f"blk.{i}.attn_norm", x), positions, rows, seen)
            x = x + (self._norm(f"blk.{i}.post_attention_norm", a) if s.post_norms else a)
            f = self._feed_forward(i, self._norm(f"blk.{i}.ffn_norm", x))
            x = x + (self._norm(f"blk.{i}.post_ffw_norm", f) if s.post_norms else f)
        return self._norm("output_norm", x)

    def _attention(self, i: int, x: np.ndarray, positions: np.ndarray, rows: slice, seen: np.ndarray) -> np.ndarray:
        s, b = self.spec, f"blk.{i}."
        n = len(x)
        q = self._linear(b + "attn_q", x).reshape(n, s.heads, s.head_dim)
        k = self._linear(b + "attn_k", x).reshape(n, s.kv_heads, s.head_dim)
        v = self._linear(b + "attn_v", x).reshape(n, s.kv_heads, s.head_dim)
        if s.qk_norm:
            q = maths.rms_norm(q, self._w[b + "attn_q_norm.weight"], s.norm_eps)
            k = maths.rms_norm(k, self._w[b + "attn_k_norm.weight"], s.norm_eps)
        if s.rope is not None:
            inv_freq = self._frequencies(i)
            q = maths.rotate(q, positions, inv_freq, s.rope.attention_factor)
            k = maths.rotate(k, positions, inv_freq, s.rope.attention_factor)
        self.kv.data[i, 0, :, rows] = k.transpose(1, 0, 2)  # [K, T, D]
        self.kv.data[i, 1, :, rows] = v.transpose(1, 0, 2)
        keys, values = self.kv.data[i, :, :, : rows.stop]  # [K, S, D] each
        out, weights = maths.attend(q, keys, values, seen, s.scale, s.attn_softcap)
        self.kv.attention.append(weights)
        return self._linear(b + "attn_output", out.reshape(n, s.heads * s.head_dim))

    def _frequencies(self, layer: int) -> np.ndarray:
        rope = self.spec.rope
        return self._inv_freq[rope is not None and rope.local_base is not None and self.spec.is_sliding(layer)]

    def _turned(self, layer: int, keys: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Keys [K, S, D] moved on by so many positions each; magnitudes stay."""
        return maths.rotate(keys.transpose(1, 0, 2), steps, self._frequencies(layer), 1.0).transpose(1, 0, 2)

    def _feed_forward(self, i: int, x: np.ndarray) -> np.ndarray:
        act, b = maths.ACTIVATIONS[self.spec.activation], f"blk.{i}."
        up = self._linear(b + "ffn_up", x)
        inner = act(self._linear(b + "ffn_gate", x)) * up if self.spec.gated_ffn else act(up)
        return self._linear(b + "ffn_down", inner)

    def _head(self, hidden: np.ndarray) -> np.ndarray:
        weight = self._w["token_embd.weight" if self.spec.tied_head else "output.weight"]
        return maths.softcap(hidden @ weight.T, self.spec.final_softcap)

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        weight = self._w[name + ".weight"]
        if self.spec.norm == "layer":
            return maths.layer_norm(x, weight, self._w[name + ".bias"], self.spec.norm_eps)
        return maths.rms_norm(x, weight, self.spec.norm_eps)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        y = x @ self._w[name + ".weight"].T
        bias = self._w.get(name + ".bias")
        return y if bias is None else y + bias
