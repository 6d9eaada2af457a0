"""Batched replies with a KV cache say what one row at a time without a cache says."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def model():
    from models.configuration import ModelShape
    from models.model import Llama

    shape = ModelShape(vocab=96, width=64, layers=3, heads=4, kv_heads=2, head_size=16, feed_forward=96, positions=48)
    made = Llama(shape)
    generator = torch.Generator().manual_seed(5)
    for parameter in made.parameters():  # no branch is silent, no norm is one: every part has a say
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 1.0))
    return made.eval()


@torch.no_grad()
def plain_greedy(model, ids: list[int], *, stop: set[int], limit: int) -> list[int]:
    """The whole text through the model for every token."""
    text = list(ids)
    while len(text) < min(len(ids) + limit, model.shape.positions):
        text.append(int(model.logits(model(torch.tensor([text]))[0, -1]).argmax()))
        if text[-1] in stop:
            break
    return text[len(ids) :]


def prompts_of(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randint(0, 96, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_greedy_rows_equal_the_model_without_a_cache(model, rows: int) -> None:
    from models.sampling import Prompt, generate

    texts = prompts_of([1, 5, 3, 20, 11, 46, 7, 30])
    free = [plain_greedy(model, ids, stop=set(), limit=12) for ids in texts]
    stops = [frozenset({reply[len(reply) // 2]}) if n % 2 else frozenset() for n, reply in enumerate(free)]
    limits = [12, 12, 4, 12, 9, 12, 12, 12]
    expected = [
        plain_greedy(model, ids, stop=set(stop), limit=limit)
        for ids, stop, limit in zip(texts, stops, limits, strict=True)
    ]
    assert len({len(reply) for reply in expected}) > 3  # rows leave the batch at different times
    wishes = [Prompt(ids=ids, stop=stop, limit=limit) for ids, stop, limit in zip(texts, stops, limits, strict=True)]
    replies = generate(model, wishes, rows=rows)
    assert [reply.ids for reply in replies] == expected
    assert [reply.ended for reply in replies] == [
        reply[-1] in stop for reply, stop in zip(expected, stops, strict=True)
    ]


def test_a_sampled_row_does_not_depend_on_its_company(model) -> None:
    from models.sampling import Prompt, generate

    texts = prompts_of([4, 9, 2, 14])
    wishes = [Prompt(ids=ids, stop=frozenset(), limit=10, temperature=0.8, seed=n) for n, ids in enumerate(texts)]
    together = generate(model, wishes)
    assert together == [generate(model, [wish])[0] for wish in wishes]
    greedy = generate(model, [Prompt(ids=ids, stop=frozenset(), limit=10) for ids in texts])
    assert sum(a.ids != b.ids for a, b in zip(together, greedy, strict=True)) >= 3


def test_draws_follow_the_cut_distribution() -> None:
    from models.sampling import choose

    logits = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25]))
    count = 4000
    draw = (torch.arange(count) + 0.5) / count  # every part of [0, 1) alike
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.7)):
        chosen = choose(logits.expand(count, -1), torch.full((count,), temperature), torch.full((count,), top_p), draw)
        expected = torch.softmax(logits / temperature, -1)
        if top_p < 1:
            expected[[0, 2]] = 0  # 0.5 and 0.25 reach 0.7
            expected /= expected.sum()
        shares = torch.bincount(chosen, minlength=4) / count
        torch.testing.assert_close(shares, expected, atol=1e-3, rtol=0)


def test_a_prompt_without_room_is_refused(model) -> None:
    from models.sampling import Prompt, generate

    with pytest.raises(ValueError, match="48 positions"):
        generate(model, [Prompt(ids=[1] * 48, stop=frozenset(), limit=4)])
