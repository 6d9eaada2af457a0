"""The public names: what `wattwise` promises is what it has, and the small values behave."""

from __future__ import annotations

import pytest

import wattwise
from wattwise.units import format_bytes, parse_bytes


def test_exported_members_exist_and_are_all() -> None:
    assert set(wattwise.__all__) == {*wattwise._WHERE, "errors", "__version__"}
    for name in wattwise.__all__:
        assert getattr(wattwise, name) is not None
    assert set(dir(wattwise)) == set(wattwise.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = wattwise.lode


def test_the_error_tree_is_the_one_in_its_docstring() -> None:
    import wattwise_devices.errors as tree

    for name in tree.__all__:
        kind = getattr(wattwise.errors, name)
        assert issubclass(kind, wattwise.errors.Error)
        assert name in (tree.__doc__ or ""), f"{name} is missing in the drawing of the tree"
    assert issubclass(wattwise.errors.MemoryBudgetError, MemoryError)
    assert issubclass(wattwise.errors.ContextOverflow, ValueError)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        (1024, 1024),
        ("900MB", 900_000_000),
        ("3.5GiB", 3758096384),
        ("2g", 2_000_000_000),
        (" 64 kib ", 65536),
    ],
)
def test_sizes_are_parsed(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "1.2.3", "5 bananas", "1e30", "nan", "9999999TB", 0, -5])
def test_bad_sizes_are_refused(text: str | int) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


def test_sizes_are_formatted() -> None:
    assert [format_bytes(n) for n in (None, 0, 1023, 1536, 100 << 20, 3 << 30)] == [
        "n/a", "0 B", "1023 B", "1.50 KiB", "100 MiB", "3.00 GiB",
    ]  # fmt: skip


def test_a_budget_keeps_bytes() -> None:
    assert wattwise.Budget(memory="1GiB").memory_bytes == 1 << 30
    assert wattwise.Budget().memory_bytes is None
    with pytest.raises(ValueError):
        wattwise.Budget(memory="much")
    with pytest.raises(TypeError):
        wattwise.Budget(watts=3)  # type: ignore[call-arg]
