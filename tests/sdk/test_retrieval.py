"""Tasks of retrieval: their answers are in the text, and a model that looks back is right where a blind one guesses."""

from __future__ import annotations

import numpy as np
import pytest

from support.chat_model import SPEC, byte_tokenizer, fake_plan, tiny_model
from support.specs import random_weights
from wattwise.model import Model
from wattwise.retrieval import CANDIDATES, KINDS, retrieval, tasks
from wattwise_runtimes.contracts import Batch, LoadSpec
from wattwise_runtimes.engines.reference import ReferenceEngine

HAYSTACK = "The sun was warm over the hills. A farmer walked along the old road. Nobody had seen the train. " * 4


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_hold_their_answer_and_keep_to_their_size(kind: str) -> None:
    made = list(tasks(kind, 20, 400, HAYSTACK, len))
    assert made == list(tasks(kind, 20, 400, HAYSTACK, len)), "the same tasks for the same seed"
    assert made != list(tasks(kind, 20, 400, HAYSTACK, len, seed=1))
    for task in made:
        assert len(task.candidates) == len(set(task.candidates)) == CANDIDATES
        answer = task.candidates[task.answer]
        question = task.question.strip()
        assert f"{question}{answer}" in task.text
        assert all(f"{question}{other}" not in task.text for other in task.candidates if other != answer)
        assert 200 < len(task.text + task.question + answer) <= 400
    assert len({task.answer for task in made}) > 3, "no place is favoured"


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="needle, pairs"):
        list(tasks("riddle", 1, 400, HAYSTACK, len))
    with pytest.raises(ValueError, match="sentences"):
        list(tasks("needle", 1, 400, "none", len))
    with pytest.raises(ValueError, match="room"):
        list(tasks("pairs", 1, 20, HAYSTACK, len))


class LooksBack:
    """An engine whose next token is what followed the last six tokens the last time they were read: an induction head,
    as far as its KV store still holds the rows."""

    def __init__(self, context: int) -> None:
        self._inner = ReferenceEngine(SPEC, random_weights(SPEC), LoadSpec(context=context, chunk=64, kv_type="f32"))
        self.spec, self.kv, self.capabilities = SPEC, self._inner.kv, self._inner.capabilities
        self._ids: dict[int, int] = {}

    def forward(self, batch: Batch, cancelled: object = None) -> np.ndarray:
        rows = []
        for token in batch.tokens:
            self._ids[self.kv.next_position] = int(token)
            self._inner.forward(Batch([int(token)], logits="none"))
            rows.append(self._logits())
        return np.stack(rows)

    def _logits(self) -> np.ndarray:
        held = [self._ids[p] for p in self.kv.positions.tolist()]
        logits = np.zeros(SPEC.vocab, np.float32)
        for at in range(len(held) - 7, -1, -1):
            if held[at : at + 6] == held[-6:]:
                logits[held[at + 6]] = 9.0
                break
        return logits

    def close(self) -> None:
        self._inner.close()


def model_of(engine: object) -> Model:
    return Model(fake_plan(), engine, byte_tokenizer(), load_ms=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_looks_back_finds_the_answer(kind: str) -> None:
    made = list(tasks(kind, 6, 300, HAYSTACK, len))
    with model_of(LooksBack(512)) as model:
        found = retrieval(model, made, kind)
    assert (found.right, found.accuracy) == (6, 1.0)
    assert found.to_json() == {"kind": kind, "tasks": 6, "right": 6, "accuracy": 1.0}


def test_random_weights_guess() -> None:
    made = list(tasks("pairs", 24, 120, HAYSTACK, len))
    with tiny_model() as model:
        assert retrieval(model, made, "pairs").accuracy < 0.6


def test_every_candidate_is_judged_from_the_same_rows() -> None:
    """Under eviction, asking twice gives the same, and nothing is evicted between candidates."""
    made = list(tasks("needle", 3, 300, HAYSTACK, len))
    with tiny_model(kv_policy="keydiff:96:token") as model:
        first = retrieval(model, made, "needle")
        assert retrieval(model, made, "needle") == first
