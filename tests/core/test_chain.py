"""Positions of the chain; what pages do to them is in conformance/chain.json and test_chain_machine.py."""

from __future__ import annotations

from tailrace.core.chain import Position, advance, at_head, follows, start
from tailrace.core.event import Gap, GapReason, Json, Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.page import Head, Page
from tests.core.stream_model import STREAM


def record(id_: EntryId, prev: EntryId | None) -> Record:
    return Record(STREAM, id_, prev, "a", Json(b"1"), 0)


def test_only_the_next_record_follows() -> None:
    position = start(EntryId(5, 1))

    assert follows(position, record(EntryId(6, 2), EntryId(5, 1)))
    assert not follows(position, record(EntryId(6, 2), EntryId(4, 1)))
    assert not follows(position, record(EntryId(6, 0), None))
    assert not follows(Position(EntryId(5, 0), None, proven=True), record(EntryId(6, 2), EntryId(5, 1)))


def test_an_id_with_number_0_is_a_foreign_entrys() -> None:
    assert start(EntryId(5, 0)).chained is None
    assert start(ZERO).chained == ZERO


def test_a_reader_from_now_begins_behind_foreign_entries() -> None:
    assert at_head(Head(EntryId(5, 1), tip=EntryId(7, 0))) == Position(EntryId(7, 0), EntryId(5, 1), proven=True)
    assert at_head(Head(EntryId(5, 1))) == Position(EntryId(5, 1), EntryId(5, 1), proven=True)


def test_a_reader_at_the_base_of_an_incarnation_without_records_waits() -> None:
    head = Head(ZERO, StreamState.OPEN, incarnation=2, base=EntryId(5, 1))

    items, position = advance(STREAM, start(EntryId(5, 1)), Page((), more=False, head=head))

    assert items == []
    assert position.cursor == EntryId(5, 1)


def test_numbers_given_out_twice_are_never_counted() -> None:
    page = Page((record(EntryId(4, 4), EntryId(3, 3)),), more=False, head=Head(EntryId(9, 4), StreamState.OPEN))

    items, _ = advance(STREAM, start(EntryId(4, 4)), page)

    assert items == [Gap(STREAM, EntryId(4, 4), None, None, GapReason.DELETED, EntryId(9, 4))]
