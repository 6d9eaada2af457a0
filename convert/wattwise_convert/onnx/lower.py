"""One decoder graph for every supported architecture, read off the ModelSpec.

Conventions are onnxruntime-genai's (names, types, meaning of inputs), with three additions that its runtime does
not notice, because they have defaults:
- `logits_rows`, int64 [n], default [-1]: whose logits to compute. Everything behind the last layer's attention
  is computed for these rows only.
- `rope_table`, int64 [1], only for LongRoPE: 0 takes the short factors, 1 the long ones.
- `position_ids` may be anything increasing: rotary angles are computed from them, not looked up by row number,
  so a cache with holes keeps right positions, and no position is too large.

Angles are reduced to one turn in float64 first; float32 loses the phase of fast dimensions at long contexts.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from wattwise_convert.onnx.graph import Graph
from wattwise_convert.onnx.weights import Weights
from wattwise_runtimes.spec import ModelSpec

BATCH, SEQUENCE, TOTAL, ROWS = "batch_size", "sequence_length", "total_sequence_length", "logits_rows_count"
_GATES = {"silu": ("QuickGelu", {"alpha": 1.0}), "gelu_tanh": ("FastGelu", {}), "gelu": ("Gelu", {})}


class Lowering:
    """Builds the graph of one model; `build()` once."""

    def __init__(self, spec: ModelSpec, graph: Graph, weights: Weights, *, context: int) -> None:
        self._spec, self._graph, self._weights, self._context = spec, graph, weights, context
        self._rope: dict[bool, tuple[str, str]] = {}  # sliding with its own base -> cos, sin
        self._pending: str | None = None  # output of the last branch, not yet added to the residual

    def build(self) -> None:
        """All inputs, nodes and outputs, in the order of execution."""
        s, g = self._spec, self._graph
        ids = g.input("input_ids", TensorProto.INT64, [BATCH, SEQUENCE])
        mask = g.input("attention_mask", TensorProto.INT64, [BATCH, TOTAL])
        g.input("position_ids", TensorProto.INT64, [BATCH, SEQUENCE])
        for i in range(s.layers):
            for part in ("key", "value"):
                dims = [BATCH, s.kv_heads, "past_sequence_length", s.head_dim]
                g.input(f"past_key_values.{i}.{part}", TensorProto.FLOAT, dims)
        g.input("logits_rows", TensorProto.INT64, [ROWS])
        g.constant("logits_rows", np.array([-1], np.int64))
        self._lengths(mask)
        self._rotations()
        x = self._embedding(ids)
        for i in range(s.layers):
            x = self._layer(i, x)
        self._head(self._norm("output_norm", x)[0])
        # genai allocates the output by its declared shape, so that is the default's; other counts are accepted.
        g.output("logits", TensorProto.FLOAT, [BATCH, 1, s.vocab])
        for i in range(s.layers):
            for part in ("key", "value"):
                dims = [BATCH, s.kv_heads, TOTAL, s.head_dim]
                g.output(f"present.{i}.{part}", TensorProto.FLOAT, dims)

    def _int(self, name: str, *values: int) -> str:
        return self._graph.constant(f"const/{name}", np.array(values, np.int64))

    def _scalar(self, name: str, value: float) -> str:
        return self._graph.constant(f"const/{name}", np.array(value, np.float32))

    def _lengths(self, mask: str) -> None:
        """GroupQueryAttention's view of the mask: last row per sequence, and the common total."""
        g = self._graph
        counts = g.node("ReduceSum", [mask, self._int("one", 1)], "lengths/sum", keepdims=0)
        last = g.node("Sub", [counts, self._int("one", 1)], "lengths/last")
        g.node("Cast", [last], "seqlens_k", to=TensorProto.INT32)
        shape = g.node("Shape", [mask], "lengths/shape", start=1, end=2)
        total = g.node("Squeeze", [shape], "lengths/total")
        g.node("Cast", [total], "total_length", to=TensorProto.INT32)

    def _rotations(self) -> None:
        """cos and sin of this call's positions, [batch * sequence, dims / 2], and the row of each token in them."""
        rope, g = self._spec.rope, self._graph
        if rope is None:
            return
        flat = g.node("Reshape", ["position_ids", self._int("column", -1, 1)], "rope/positions")
        positions = g.node("Cast", [flat], "rope/positions_f64", to=TensorProto.DOUBLE)
        size = g.node("Size", ["position_ids"], "rope/size")
        zero, one = (g.constant(f"const/scalar_{v}", np.array(v, np.int64)) for v in (0, 1))
        rows = g.node("Range", [zero, size, one], "rope/range")
        shape = g.node("Shape", ["position_ids"], "rope/shape")
        g.node("Reshape", [rows, shape], "rope/rows")
        kinds = {rope.local_base is not None and self._spec.is_sliding(i) for i in range(self._spec.layers)}
        for local in sorted(kinds):
            name = "rope_local" if local else "rope"
            turns = g.node("Mul", [positions, self._frequencies(name, local)], f"{name}/turns")
            whole = g.node("Floor", [turns], f"{name}/whole")
            part = g.node("Sub", [turns, whole], f"{name}/part")
            full = g.constant("const/full_turn", np.array(2 * math.pi, np.float64))
            radians = g.node("Mul", [part, full], f"{name}/radians")
            angle = g.node("Cast", [radians], f"{name}/angle", to=TensorProto.FLOAT)
            pair = []
            for function in ("Cos", "Sin"):
                value = g.node(function, [angle], f"{name}/{function.lower()}")
                if rope.attention_factor != 1.0:
                    factor = self._scalar("attention_factor", rope.attention_factor)
                    value = g.node("Mul", [value, factor], f"{value}_scaled")
                pair.append(value)
            self._rope[local] = (pair[0], pair[1])

    def _frequencies(self, name: str, local: bool) -> str:
        """Turns per position, float64 [1, dims / 2]; for LongRoPE the row that `rope_table` names."""
        rope, g = self._spec.rope, self._graph
        assert rope is not None  # the caller has checked
        if rope.scaling != "longrope" or local:
            turns = rope.inverse_frequencies(context=self._context, local=local) / (2 * math.pi)
            return g.constant(f"{name}/frequencies", turns[None])
        both = [rope.inverse_frequencies(context=rope.original_context + c, local=False) for c in (0, 1)]
        table = g.constant(f"{name}/frequencies", np.stack(both) / (2 * math.pi))
        chosen = g.input("rope_table", TensorProto.INT64, [1])
        g.constant("rope_table", np.array([int(self._context > rope.original_context)], np.int64))
        return g.node("Gather", [table, chosen], f"{name}/chosen_frequencies")

    def _embedding(self, ids: str) -> str:
        s, g = self._spec, self._graph
        x = self._weights.embedding(ids, "token_embd.weight", "embedding")
        if s.embed_scale != 1.0:
            x = g.node("Mul", [x, self._scalar("embed_scale", s.embed_scale)], "embedding/scaled")
        if s.rope is None:
            positions = self._weights.embedding("position_ids", "position_embd.weight", "position_embedding")
            x = g.node("Add", [x, positions], "embedding/with_positions")
        return x

    def _layer(self, i: int, x: str) -> str:
        """One block. Gives the residual stream; the last branch stays pending and is added by the next norm."""
        s, g, b = self._spec, self._graph, f"blk.{i}"
        normed, x = self._norm(f"{b}.attn_norm", x)
        attention = self._attention(i, normed)
        if i == s.layers - 1:  # from here on only the wanted rows matter
            attention = g.node("Gather", [attention, "logits_rows"], f"{b}.wanted_attention", axis=1)
            x = g.node("Gather", [x, "logits_rows"], f"{b}.wanted_residual", axis=1)
        branch = self._weights.linear(attention, f"{b}.attn_output", f"{b}.attn_output")
        self._pending = self._norm_alone(f"{b}.post_attention_norm", branch) if s.post_norms else branch
        normed, x = self._norm(f"{b}.ffn_norm", x)
        branch = self._feed_forward(i, normed)
        self._pending = self._norm_alone(f"{b}.post_ffw_norm", branch) if s.post_norms else branch
        return x

    def _attention(self, i: int, x: str) -> str:
        s, g, b = self._spec, self._graph, f"blk.{i}"
        q, k, v = (self._weights.linear(x, f"{b}.attn_{part}", f"{b}.attn_{part}") for part in "qkv")
        if s.qk_norm:
            q, k = self._head_norm(q, f"{b}.attn_q_norm", s.heads), self._head_norm(k, f"{b}.attn_k_norm", s.kv_heads)
        if s.rope is not None:
            cos, sin = self._rope[s.rope.local_base is not None and s.is_sliding(i)]
            q, k = (
                g.node("RotaryEmbedding", [t, "rope/rows", cos, sin], f"{t}/rotated", num_heads=heads,
                       rotary_embedding_dim=s.rope.dims if s.rope.dims < s.head_dim else 0)
                for t, heads in ((q, s.heads), (k, s.kv_heads))
            )  # fmt: skip
        attributes: dict[str, float | int] = {"num_heads": s.heads, "kv_num_heads": s.kv_heads, "scale": s.scale}
        if s.is_sliding(i) and s.sliding_window:
            attributes["local_window_size"] = s.sliding_window
        if s.attn_softcap is not None:
            attributes["softcap"] = s.attn_softcap
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        present = [f"present.{i}.key", f"present.{i}.value"]
        return g.nodes(
            "GroupQueryAttention", [q, k, v, *past, "seqlens_k", "total_length"], [f"{b}.attention", *present],
            name=f"{b}.attention", **attributes,
        )[0]  # fmt: skip

    def _feed_forward(self, i: int, x: str) -> str:
        s, g, b = self._spec, self._graph, f"blk.{i}"
        op, attributes = _GATES[s.activation]
        if s.gated_ffn:
            gate = self._weights.linear(x, f"{b}.ffn_gate", f"{b}.ffn_gate")
            act = g.node(op, [gate], f"{b}.ffn_act", **attributes)
            up = self._weights.linear(x, f"{b}.ffn_up", f"{b}.ffn_up")
            inner = g.node("Mul", [act, up], f"{b}.ffn_inner")
        else:
            up = self._weights.linear(x, f"{b}.ffn_up", f"{b}.ffn_up")
            inner = g.node(op, [up], f"{b}.ffn_inner", **attributes)
        return self._weights.linear(inner, f"{b}.ffn_down", f"{b}.ffn_down")

    def _norm_weights(self, name: str) -> list[str]:
        weights = [self._weights.vector(f"{name}.weight")]
        if self._spec.norm == "layer":
            weights.append(self._weights.vector(f"{name}.bias"))
        return weights

    def _norm_alone(self, name: str, x: str) -> str:
        op = "LayerNormalization" if self._spec.norm == "layer" else "SimplifiedLayerNormalization"
        inputs = [x, *self._norm_weights(name)]
        return self._graph.node(op, inputs, f"{name}/out", axis=-1, epsilon=self._spec.norm_eps)

    def _norm(self, name: str, x: str) -> tuple[str, str]:
        """(norm of the residual stream with the pending branch added, that stream)."""
        if self._pending is None:
            return self._norm_alone(name, x), x
        op = "SkipLayerNormalization" if self._spec.norm == "layer" else "SkipSimplifiedLayerNormalization"
        inputs = [x, self._pending, *self._norm_weights(name)]
        self._pending = None
        outputs = [f"{name}/out", "", "", f"{name}/sum"]
        self._graph.nodes(op, inputs, outputs, name=name, epsilon=self._spec.norm_eps)
        return outputs[0], outputs[3]

    def _head_norm(self, x: str, name: str, heads: int) -> str:
        """RMSNorm over each head: [batch, sequence, heads * dim] seen as rows of dim."""
        s, g = self._spec, self._graph
        split = g.node("Reshape", [x, self._int(f"split_{heads}", 0, 0, heads, s.head_dim)], f"{x}/heads")
        weight = self._weights.vector(f"{name}.weight")
        normed = g.node("SimplifiedLayerNormalization", [split, weight], f"{name}/out", axis=-1, epsilon=s.norm_eps)
        joined = self._int(f"joined_{heads}", 0, 0, heads * s.head_dim)
        return g.node("Reshape", [normed, joined], f"{x}/normed")

    def _head(self, x: str) -> None:
        s, g = self._spec, self._graph
        weight = "token_embd.weight" if s.tied_head else "output.weight"
        if s.final_softcap is None:
            self._weights.linear(x, "output", "logits", weight)
            return
        raw = self._weights.linear(x, "output", "logits/raw", weight)
        cap = self._scalar("final_softcap", s.final_softcap)
        scaled = g.node("Div", [raw, cap], "logits/scaled")
        squashed = g.node("Tanh", [scaled], "logits/squashed")
        g.node("Mul", [squashed, cap], "logits")
