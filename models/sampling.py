"""Replies of a torch model to many prompts at once, with a KV cache: for making training data, not for serving.

Rows of a batch have their own length, temperature, end tokens, limit and random numbers. What a row says depends
on its own prompt and seed alone, up to rounding, not on which rows it shares a batch with. Rows that have ended
leave the batch, so a long reply does not hold the short ones' work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.model import Attention, Llama, rotate


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One reply to make. temperature 0 takes the likeliest token; top_p cuts the unlikely tail."""

    ids: Sequence[int]
    stop: frozenset[int]
    limit: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """Generated ids, the end token included where there was one. ended: whether it came to an end by itself."""

    ids: list[int]
    ended: bool


class _Rows:
    """The rows of a batch that still grow, and their keys and values `[rows, KV heads, positions, head size]`."""

    def __init__(self, model: Llama, prompts: Sequence[Prompt]) -> None:
        device = model.embed_tokens.weight.device
        shape = model.shape
        self.index = list(range(len(prompts)))  # where each row stands among the prompts
        self.lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=device)
        room = max(min(shape.positions, len(prompt.ids) + prompt.limit) for prompt in prompts)
        size = (len(prompts), shape.kv_heads, room, shape.head_size)
        self.keys = [torch.zeros(size, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, device=device) for _ in range(shape.layers)]

    def keep(self, rows: list[int]) -> None:
        chosen = torch.tensor(rows, device=self.lengths.device)
        self.index = [self.index[row] for row in rows]
        self.lengths = self.lengths[chosen]
        self.keys = [keys[chosen] for keys in self.keys]
        self.values = [values[chosen] for values in self.values]


def _attend(
    layer: Attention, x: Tensor, rows: _Rows, number: int, places: Tensor, tables: tuple[Tensor, Tensor]
) -> Tensor:
    """Attention of new tokens `x` at `places` [rows, new] over everything cached, themselves included."""
    shape = layer.shape
    batch, new, _ = x.shape
    cos, sin = (table[places][:, None] for table in tables)

    def split(projected: Tensor, heads: int) -> Tensor:
        return projected.view(batch, new, heads, shape.head_size).transpose(1, 2)

    q = rotate(split(layer.q_proj(x), shape.heads), cos, sin)
    k = rotate(split(layer.k_proj(x), shape.kv_heads), cos, sin)
    v = split(layer.v_proj(x), shape.kv_heads)
    keys, values = rows.keys[number], rows.values[number]
    at = places[:, None, :, None].expand(-1, shape.kv_heads, -1, shape.head_size)
    keys.scatter_(2, at, k.to(keys.dtype))
    values.scatter_(2, at, v.to(values.dtype))
    end = int(places.max()) + 1
    group = shape.heads // shape.kv_heads
    grouped = q.reshape(batch, shape.kv_heads, group * new, shape.head_size).to(keys.dtype)
    scores = (grouped @ keys[:, :, :end].transpose(-1, -2)) * shape.head_size**-0.5
    hidden = torch.arange(end, device=x.device)[None, None, :] > places[:, :, None]  # [rows, new, end]
    scores = scores.view(batch, shape.kv_heads, group, new, end).masked_fill(hidden[:, None, None], float("-inf"))
    weights = torch.softmax(scores.float(), dim=-1).to(values.dtype).view(batch, shape.kv_heads, group * new, end)
    mixed = (weights @ values[:, :, :end]).view(batch, shape.heads, new, shape.head_size)
    return layer.o_proj(mixed.transpose(1, 2).reshape(batch, new, -1))


def _forward(model: Llama, rows: _Rows, ids: Tensor, places: Tensor, last: Tensor) -> Tensor:
    """Logits [rows, vocab] at column `last` of each row's new tokens, float32."""
    tables = (model.get_buffer("cos"), model.get_buffer("sin"))
    x = model.embed_tokens(ids)
    for number, layer in enumerate(model.layers):
        attention: Attention = layer.self_attn  # type: ignore[assignment] - torch types its modules loosely
        x = x + _attend(attention, layer.input_layernorm(x), rows, number, places, tables)  # type: ignore[operator]
        x = x + layer.mlp(layer.post_attention_layernorm(x))  # type: ignore[operator]
    return model.logits(model.norm(x[torch.arange(len(x), device=x.device), last])).float()


def choose(logits: Tensor, temperature: Tensor, top_p: Tensor, draw: Tensor) -> Tensor:
    """The token of each row: the best one at temperature 0, else where `draw` in [0, 1) falls among those kept."""
    best = logits.argmax(-1)
    if bool((temperature <= 0).all()):
        return best
    warm = torch.where(temperature > 0, temperature, torch.ones_like(temperature))
    probabilities, order = torch.softmax(logits / warm[:, None], dim=-1).sort(descending=True)
    total = probabilities.cumsum(-1)
    kept = probabilities.masked_fill(total - probabilities >= top_p[:, None], 0.0)
    reached = kept.cumsum(-1)
    at = (reached <= (draw * reached[:, -1])[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
    at = torch.minimum(at, (kept > 0).sum(-1) - 1)  # rounding must not reach past the last one kept
    return torch.where(temperature > 0, order.gather(-1, at[:, None])[:, 0], best)


def _draws(prompts: Sequence[Prompt]) -> Tensor:
    most = max(prompt.limit for prompt in prompts)
    draws = torch.zeros(len(prompts), most)
    for row, prompt in enumerate(prompts):
        if prompt.temperature > 0:
            draws[row] = torch.rand(most, generator=torch.Generator().manual_seed(prompt.seed))
    return draws


@torch.no_grad()
def _generate_batch(model: Llama, prompts: Sequence[Prompt]) -> list[Continuation]:
    device = model.embed_tokens.weight.device
    rows = _Rows(model, prompts)
    replies: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    temperature = torch.tensor([prompt.temperature for prompt in prompts], device=device)
    top_p = torch.tensor([prompt.top_p for prompt in prompts], device=device)
    draws = _draws(prompts).to(device)
    longest = int(rows.lengths.max())
    ids = torch.tensor([[*prompt.ids, *[0] * (longest - len(prompt.ids))] for prompt in prompts], device=device)
    # A short row's padding is cached too, but behind the mask until its own tokens take the places.
    places = torch.arange(longest, device=device).expand(len(prompts), -1)
    last = rows.lengths - 1
    step = 0
    while rows.index:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            logits = _forward(model, rows, ids, places, last)
        which = torch.tensor(rows.index, device=device)
        tokens = choose(logits, temperature[which], top_p[which], draws[which, min(step, draws.shape[1] - 1)])
        going = []
        for row, (index, token) in enumerate(zip(rows.index, tokens.tolist(), strict=True)):
            prompt, reply = prompts[index], replies[index]
            reply.append(token)
            ended[index] = token in prompt.stop
            full = len(reply) >= prompt.limit or len(prompt.ids) + len(reply) >= model.shape.positions
            if not ended[index] and not full:
                going.append(row)
        if len(going) < len(rows.index):
            if not going:
                break
            rows.keep(going)
            tokens = tokens[torch.tensor(going, device=device)]
        ids, places = tokens[:, None], rows.lengths[:, None]
        rows.lengths = rows.lengths + 1
        last = torch.zeros_like(rows.lengths)
        step += 1
    return [Continuation(ids=reply, ended=end) for reply, end in zip(replies, ended, strict=True)]


def generate(model: Llama, prompts: Sequence[Prompt], *, rows: int = 32) -> list[Continuation]:
    """The replies in the order of the prompts. rows: the most in one batch; prompts of like length share one."""
    for prompt in prompts:
        if not prompt.ids or len(prompt.ids) >= model.shape.positions or prompt.limit < 1:
            raise ValueError(
                f"a prompt of {len(prompt.ids)} tokens with a limit of {prompt.limit} cannot be answered in "
                f"{model.shape.positions} positions"
            )
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    replies: dict[int, Continuation] = {}
    for first in range(0, len(order), rows):
        part = order[first : first + rows]
        answers = _generate_batch(model, [prompts[index] for index in part])
        replies.update(zip(part, answers, strict=True))
    return [replies[index] for index in range(len(prompts))]
