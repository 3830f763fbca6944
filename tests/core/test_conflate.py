"""Conflation: the latest per key, and nothing else is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tailrace.core.conflate import conflate
from tailrace.core.event import Gap, GapReason, Item, Json, Record
from tailrace.core.ids import ZERO, EntryId
from tests.core.stream_model import STREAM

GAP = Gap(STREAM, ZERO, None, None, GapReason.TRIMMED, ZERO)


def record(number: int, key: str | None) -> Record:
    return Record(STREAM, EntryId(1, number), EntryId(1, number - 1), "a", Json(b"1"), 0, key=key)


def test_the_latest_per_key_stays_in_its_place() -> None:
    items = [record(number, key) for number, key in enumerate(["a", "b", None, "a", "b", None], 1)]

    assert [item.id.seq for item in conflate(items) if isinstance(item, Record)] == [3, 4, 5, 6]


def test_nothing_is_replaced_across_a_gap() -> None:
    items: list[Item] = [record(1, "a"), record(2, "a"), GAP, record(3, "a")]

    assert conflate(items) == [items[1], GAP, items[3]]


@given(st.lists(st.sampled_from(["a", "b", None, "gap"])))
def test_order_and_everything_without_a_later_value_stay(keys: list[str | None]) -> None:
    items: list[Item] = [GAP if key == "gap" else record(number, key) for number, key in enumerate(keys, 1)]

    kept = conflate(items)

    assert kept == [item for item in items if item in kept]
    assert kept[-1:] == items[-1:]
    assert kept.count(GAP) == items.count(GAP)
    assert [item for item in kept if isinstance(item, Record) and item.key is None] == [
        item for item in items if isinstance(item, Record) and item.key is None
    ]
