"""Push messages: what the append script writes is what is decoded, and nothing else breaks the tail."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.core.event import Json, Record
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.eventlog.redis.wire import Place, decode, encode

STREAM = StreamName("run:1")
LABELS = st.none() | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=200)
IDS = st.builds(EntryId, st.integers(0, 2**63), st.integers(1, 2**53))


@st.composite
def chains(draw: st.DrawFn) -> list[Record]:
    """Records as one append makes them."""
    first, prev = draw(IDS), draw(st.just(ZERO) | IDS)
    records = []
    for index in range(draw(st.integers(1, 5))):
        entry = EntryId(first.ms, first.seq + index)
        records.append(
            Record(
                STREAM,
                entry,
                prev,
                draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", fullmatch=True)),
                Json(draw(st.binary(min_size=1).map(lambda raw: raw.replace(b"\n", b" ").replace(b"\r", b" ")))),
                draw(st.integers(0, 2**50)),
                *(draw(LABELS) for _ in range(4)),
            )
        )
        prev = entry
    return records


@given(chains(), chains())
def test_what_is_encoded_is_decoded(one: list[Record], other: list[Record]) -> None:
    place = Place(STREAM)

    assert decode(place, encode(one)) == one
    assert place.last == one[-1].id
    assert decode(place, encode(other)) == other
    assert place.last == other[-1].id


@given(chains(), st.data())
def test_a_damaged_message_is_an_error_or_another_message(records: list[Record], data: st.DataObject) -> None:
    message = bytearray(encode(records))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))

    try:
        decoded = decode(Place(STREAM), bytes(message[: data.draw(st.integers(0, len(message)))]))
    except ValueError:
        return

    assert all(10 not in record.data and 13 not in record.data for record in decoded)
    assert all(text is None or text.isprintable() for record in decoded for text in (record.type, record.uid))


def test_a_record_that_is_named_only_moves_the_place() -> None:
    place = Place(STREAM)

    records = decode(place, b"t1\n9\ni\n5-1\n6-2" + encode([record(EntryId(6, 3), EntryId(6, 2))])[3:])

    assert [one.id for one in records] == [EntryId(6, 3)]
    assert place.skipped
    assert place.last == EntryId(6, 3)


def test_a_change_of_state_is_flagged() -> None:
    place = Place(STREAM)

    assert decode(place, b"t1\n12\ns\n6-2\nclosed") == []
    assert place.state
    assert place.last is None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"t2\n3\nabc",
        b"t1\nx\nabc",
        b"t1\n99\nr\n",
        b"t1\n0\n",
        b"t1\n-3\nabc",
        encode([Record(STREAM, EntryId(1, 1), ZERO, "a", Json(b'"\r"'), 1)]),
        encode([Record(STREAM, EntryId(1, 1), ZERO, "a", Json(b'"\n"'), 1)]),
        encode([Record(STREAM, EntryId(1, 1), ZERO, "a\rb", Json(b"1"), 1)]),
        encode([Record(STREAM, EntryId(1, 1), ZERO, "a", Json(b"1"), 1, uid="u\r")]),
        b"t1\n5\ni\n5-1",
        b"t1\n1\ni",
        b"t1\n13\nr\n5-0\n5-1\n5\na",
        encode([Record(STREAM, EntryId(2**64, 1), ZERO, "a", Json(b"1"), 1)]),
        encode([Record(STREAM, EntryId(1, 2**64), ZERO, "a", Json(b"1"), 1)]),
        encode([Record(STREAM, EntryId(1, -1), ZERO, "a", Json(b"1"), 1)]),
        encode([Record(STREAM, EntryId(1, 1), EntryId(1, 2**64), "a", Json(b"1"), 1)]),
        encode([Record(STREAM, EntryId(1, 1), ZERO, "a", Json(b"1"), -1)]),
        encode([Record(STREAM, EntryId(1, 1), ZERO, "a", Json(b"1"), 2**64)]),
        b"t1\n%d\ni\n5-1\n5-%d" % (8 + len(str(2**64)), 2**64),
    ],
)
def test_a_message_of_another_form_is_an_error(message: bytes) -> None:
    with pytest.raises(ValueError):
        decode(Place(STREAM), message)


def record(entry: EntryId, prev: EntryId) -> Record:
    return Record(STREAM, entry, prev, "test.event", Json(b"1"), 1)
