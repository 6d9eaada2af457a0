"""What `POLICY[:BUDGET][:close|keep][:token|head]` comes to, and what is refused in words."""

from __future__ import annotations

import pytest

from wattwise.kv.eviction import parse_eviction, wanted_eviction
from wattwise_devices.errors import PlanError


def resolved(text: str, *, context: int = 1024, row_bytes: int = 1000, level: str = "token"):
    return parse_eviction(text).resolve(context=context, row_bytes=row_bytes, level=level)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("keydiff:512", 512), ("keydiff:50%", 512), ("keydiff:600kB", 600), ("keydiff:12.5%", 128), ("keydiff", 896)],
)
def test_budgets(text: str, tokens: int) -> None:
    found = resolved(text)
    assert found.budget_tokens == tokens
    assert found.rows == found.budget_tokens + found.block
    assert found.block <= 128


def test_without_a_budget_rows_and_block_fill_the_context() -> None:
    for context in (64, 100, 512, 4096):
        assert resolved("knorm", context=context).rows == context
        assert resolved("tova", context=context).rows == context


def test_attention_is_read_in_smaller_blocks_because_scores_are_large() -> None:
    assert resolved("snapkv:512").block < resolved("keydiff:512").block
    assert resolved("snapkv:512").needs_attention
    assert not resolved("keydiff:512").needs_attention


def test_positions_and_level_are_the_policys_and_the_engines_unless_said() -> None:
    assert (resolved("window:64").positions, resolved("window:64").level) == ("close", "token")
    assert (resolved("keydiff:64").positions, resolved("keydiff:64").level) == ("keep", "token")
    assert resolved("keydiff:64", level="head").level == "head"
    assert resolved("window:64", level="head").level == "token", "closed positions are the same for all heads"
    assert resolved("window:64:keep", level="head").level == "head"
    assert resolved("keydiff:64:close:token", level="head").positions == "close"
    assert resolved("keydiff:64:token", level="head").level == "token"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("oracle:5", "no KV policy 'oracle'"), ("keydiff:lots", "'lots'"), ("keydiff:0%", "0%"),
        ("keydiff:120%", "120%"), ("keydiff:64:128", "twice"), ("keydiff:64:50%", "two budgets"),
        ("keydiff:keep:close", "twice"), ("keydiff:", "''"),
    ],
)  # fmt: skip
def test_wrong_words_are_named(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse_eviction(text)


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [
        ("keydiff:8", "token", "least is 16"), ("keydiff:64:head", "token", "heads cannot"),
        ("keydiff:64:close:head", "head", "holes cannot be closed"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(text: str, level: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        resolved(text, level=level)


@pytest.mark.parametrize("text", ["keydiff", "keydiff:512", "window:50%:keep:token", "h2o:600000B"])
def test_a_request_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_eviction(text)) == text


def test_overflow_is_another_word_for_a_policy() -> None:
    assert wanted_eviction(None, "error") is None
    assert wanted_eviction(None, "summarise") is None
    assert str(wanted_eviction(None, "evict")) == "keydiff"
    assert str(wanted_eviction(None, "shift")) == "window"
    asked = parse_eviction("tova:64")
    assert wanted_eviction(asked, "error") is asked
    with pytest.raises(PlanError, match="tova:64"):
        wanted_eviction(asked, "evict")
