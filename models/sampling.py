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

_SPARSE = 0.75  # copying the cache costs more than a few idle rows
_PADDED_TOKENS = 2048  # of a part of the prompts that is read at once: small enough for caches, big enough for cores


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
        self.growing = [True] * len(prompts)  # a row that has ended idles in its place until `keep`
        self.lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=device)
        room = max(min(shape.positions, len(prompt.ids) + prompt.limit) for prompt in prompts)
        size = (len(prompts), shape.kv_heads, room, shape.head_size)
        self.keys = [torch.zeros(size, device=device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, device=device) for _ in range(shape.layers)]

    def caches(self, first: int = 0, end: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Views of the rows' keys and values, layer by layer."""
        return [(keys[first:end], values[first:end]) for keys, values in zip(self.keys, self.values, strict=True)]

    def keep(self, rows: list[int]) -> None:
        chosen = torch.tensor(rows, device=self.lengths.device)
        self.index = [self.index[row] for row in rows]
        self.growing = [self.growing[row] for row in rows]
        self.lengths = self.lengths[chosen]
        self.keys = [keys[chosen] for keys in self.keys]
        self.values = [values[chosen] for values in self.values]


def _attend(
    layer: Attention, x: Tensor, cache: tuple[Tensor, Tensor], places: Tensor, tables: tuple[Tensor, Tensor]
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
    keys, values = cache
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


def _forward(
    model: Llama, caches: Sequence[tuple[Tensor, Tensor]], ids: Tensor, places: Tensor, last: Tensor
) -> Tensor:
    """Logits [rows, vocab] at column `last` of each row's new tokens, float32."""
    tables = (model.get_buffer("cos"), model.get_buffer("sin"))
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type != "cpu"):
        x = model.embed_tokens(ids)
        for layer, cache in zip(model.layers, caches, strict=True):
            attention: Attention = layer.self_attn  # type: ignore[assignment] - torch types its modules loosely
            x = x + _attend(attention, layer.input_layernorm(x), cache, places, tables)  # type: ignore[operator]
            x = x + layer.mlp(layer.post_attention_layernorm(x))  # type: ignore[operator]
        return model.logits(model.norm(x[torch.arange(len(x), device=x.device), last])).float()


def _read_prompts(model: Llama, rows: _Rows, prompts: Sequence[Prompt]) -> Tensor:
    """Fill the cache, in parts of like length; the logits after each prompt.

    A short row's padding is cached too, but behind the mask until its own tokens take the places.
    """
    device = rows.lengths.device
    logits, first = [], 0
    while first < len(prompts):
        end = first + 1
        while end < len(prompts) and (end + 1 - first) * len(prompts[end].ids) <= _PADDED_TOKENS:
            end += 1
        part = prompts[first:end]
        longest = max(len(prompt.ids) for prompt in part)
        ids = torch.tensor([[*prompt.ids, *[0] * (longest - len(prompt.ids))] for prompt in part], device=device)
        places = torch.arange(longest, device=device).expand(len(part), -1)
        logits.append(_forward(model, rows.caches(first, end), ids, places, rows.lengths[first:end] - 1))
        first = end
    return torch.cat(logits)


def choose(logits: Tensor, temperature: Tensor, top_p: Tensor, draw: Tensor) -> Tensor:
    """The token of each row: the best one at temperature 0, else where `draw` in [0, 1) falls among those kept."""
    chosen = logits.argmax(-1)
    rows = torch.nonzero(temperature > 0)[:, 0]
    if len(rows):
        probabilities = torch.softmax(logits[rows] / temperature[rows, None], dim=-1)
        chosen[rows] = _drawn(probabilities, top_p[rows], draw[rows])
    return chosen


def _drawn(probabilities: Tensor, top_p: Tensor, draw: Tensor) -> Tensor:
    order = None
    if bool((top_p < 1).any()):  # sorting costs more than all the rest
        probabilities, order = probabilities.sort(descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p[:, None], 0.0)
    reached = probabilities.cumsum(-1)
    target = (draw * reached[:, -1])[:, None]
    # Rounding must not reach past the last token that has a probability.
    target = torch.minimum(target, reached[:, -1:] * (1 - 1e-6))
    at = torch.searchsorted(reached, target, right=True).clamp(max=probabilities.shape[-1] - 1)
    return (at if order is None else order.gather(-1, at))[:, 0]


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
    logits = _read_prompts(model, rows, prompts)
    step = 0
    while True:
        which = torch.tensor(rows.index, device=device)
        tokens = choose(logits, temperature[which], top_p[which], draws[which, min(step, draws.shape[1] - 1)])
        for row, (index, token) in enumerate(zip(rows.index, tokens.tolist(), strict=True)):
            if not rows.growing[row]:
                continue
            prompt, reply = prompts[index], replies[index]
            reply.append(token)
            ended[index] = token in prompt.stop
            full = len(reply) >= prompt.limit or len(prompt.ids) + len(reply) >= model.shape.positions
            rows.growing[row] = not ended[index] and not full
        going = [row for row, grows in enumerate(rows.growing) if grows]
        if not going:
            break
        if len(going) <= _SPARSE * len(rows.index):
            rows.keep(going)
            tokens = tokens[torch.tensor(going, device=device)]
        last = torch.zeros_like(rows.lengths)
        logits = _forward(model, rows.caches(), tokens[:, None], rows.lengths[:, None], last)
        rows.lengths = rows.lengths + torch.tensor(rows.growing, device=device)
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
