"""Compaction: fewer records, the same text, the same chain, the same cursors."""

from __future__ import annotations

from itertools import pairwise

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tailrace.core.compact import DELTA, SNAPSHOT, compact
from tailrace.core.event import Gap, GapReason, Item, Json, Record
from tailrace.core.ids import ZERO, EntryId
from tests.core.stream_model import STREAM

GAP = Gap(STREAM, ZERO, None, None, GapReason.TRIMMED, ZERO)
pieces = st.lists(st.tuples(st.sampled_from(["a", "b", "other", "gap"]), st.text(max_size=4)), max_size=60)


def record(number: int, type_: str, data: object, prev: EntryId | None) -> Record:
    return Record(STREAM, EntryId(1, number), prev, type_, Json(msgspec.json.encode(data)), 0)


def made_of(given: list[tuple[str, str]]) -> list[Item]:
    """Deltas of steps a and b, other records, and gaps that stand for one lost record each."""
    items: list[Item] = []
    prev = ZERO
    for number, (what, text) in enumerate(given, 1):
        if what == "gap":
            items.append(GAP)
        elif what == "other":
            items.append(record(number, "note", text, prev))
        else:
            items.append(record(number, DELTA, {"step": what, "text": text}, prev))
        prev = EntryId(1, number)
    return items


def texts_of(items: list[Item]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for item in items:
        if isinstance(item, Record) and item.type in (DELTA, SNAPSHOT):
            data = msgspec.json.decode(item.data)
            for each in [data] if item.type == DELTA else data["texts"]:
                texts[each["step"]] = texts.get(each["step"], "") + each["text"]
    return texts


def records_in(items: list[Item]) -> list[Record]:
    return [item for item in items if isinstance(item, Record)]


@given(pieces, st.integers(20, 200))
def test_the_text_of_every_step_is_the_same(given: list[tuple[str, str]], max_bytes: int) -> None:
    items = made_of(given)

    assert texts_of(compact(items, max_bytes)) == texts_of(items)


@given(pieces)
def test_what_is_no_delta_stays_and_so_do_ends_and_chain(given: list[tuple[str, str]]) -> None:
    items = made_of(given)

    compacted = compact(items)

    assert [item for item in compacted if item not in items] == [
        item for item in compacted if isinstance(item, Record) and item.type == SNAPSHOT
    ]
    assert [item for item in compacted if item is GAP] == [item for item in items if item is GAP]
    assert [each for each in records_in(compacted) if each.type == "note"] == [
        each for each in records_in(items) if each.type == "note"
    ]
    assert [each.id for each in records_in(compacted)[-1:]] == [each.id for each in records_in(items)[-1:]]
    whole = GAP not in items
    assert not whole or all(after.prev == before.id for before, after in pairwise(records_in(compacted)))


@given(pieces, st.data())
def test_a_reader_that_comes_back_at_any_record_has_the_same_text(
    given: list[tuple[str, str]], data: st.DataObject
) -> None:
    items = [item for item in made_of(given) if item is not GAP]
    compacted = records_in(compact(items))
    cut = data.draw(st.integers(0, len(compacted)))
    seen: list[Item] = list(compacted[:cut])
    cursor = seen[-1].id if seen and isinstance(seen[-1], Record) else ZERO

    rest = compact([item for item in records_in(items) if item.id > cursor])

    assert texts_of([*seen, *rest]) == texts_of(items)


def test_a_thousand_deltas_are_one_record() -> None:
    items = made_of([("a", f"{number} ") for number in range(1_000)])

    (one,) = compact(items)

    assert isinstance(one, Record)
    assert (one.id, one.prev, one.type) == (EntryId(1, 1_000), ZERO, SNAPSHOT)
    assert msgspec.json.decode(one.data)["records"] == 1_000


def test_a_lone_delta_and_deltas_of_another_shape_stay_as_they_are() -> None:
    shapes: list[object] = [{"step": "a", "text": "x", "more": 1}, {"step": 1, "text": "x"}, "text", {"step": "a"}]
    items = [
        record(number, DELTA, data, EntryId(1, number - 1))
        for number, data in enumerate([*shapes, {"step": "a", "text": "x"}], 1)
    ]

    assert compact(items) == items
