"""Cursors beside the conformance cases: round trips, fixed width, collisions, hostile texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.core import cursor as module
from tailrace.core.cursor import (
    MAX_CURSOR_BYTES,
    MAX_STREAMS,
    CursorToken,
    Since,
    Special,
    format_cursor,
    parse_cursor,
    parse_resume,
)
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.errors import InvalidCursor, UsageError

streams = st.from_regex(r"[a-z][a-z0-9]{0,5}:[A-Za-z0-9][A-Za-z0-9._~@-]{0,12}", fullmatch=True).map(StreamName.parse)
ids = st.builds(EntryId, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 2))
A, B, C = (StreamName.parse(f"run:{name}") for name in "abc")


@given(st.dictionaries(streams, ids, min_size=1, max_size=MAX_STREAMS))
def test_a_cursor_reads_back_for_its_streams(cursors: dict[StreamName, EntryId]) -> None:
    text = format_cursor(cursors)

    assert parse_cursor(text, list(cursors)) == cursors
    assert len(text.encode()) <= MAX_CURSOR_BYTES


@given(st.lists(streams, min_size=2, max_size=MAX_STREAMS, unique=True), st.lists(ids, min_size=1, max_size=5))
def test_all_tokens_of_a_connection_have_one_length(names: list[StreamName], places: list[EntryId]) -> None:
    token = CursorToken(names)
    lengths = {len(bytes(token))}

    for index, place in enumerate(places):
        token.move(names[index % len(names)], place)
        lengths.add(len(str(token)))

    assert len(lengths) == 1


@given(
    st.text()
    | st.text(alphabet="0123456789-$c1.AQ_", max_size=40)
    | st.binary(max_size=60).map(lambda raw: f"c1.{raw.hex()}")
)
def test_no_text_raises_anything_but_invalid_cursor(text: str) -> None:
    for names in ([A], [A, B]):
        try:
            parsed = parse_cursor(text, names)
        except InvalidCursor:
            continue
        assert set(parsed) == set(names)


def test_a_stream_without_a_position_begins_at_its_default() -> None:
    token = CursorToken([A, B])
    token.move(A, EntryId(5, 1))

    assert parse_cursor(str(token), [A, B, C]) == {A: EntryId(5, 1), B: Special.DEFAULT, C: Special.DEFAULT}


@pytest.mark.parametrize("count", [0, MAX_STREAMS + 1])
def test_a_token_names_1_to_32_streams(count: int) -> None:
    with pytest.raises(UsageError):
        format_cursor({StreamName.parse(f"run:{index}"): ZERO for index in range(count)})


def test_names_that_collide_are_told_apart_by_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "name_hash", lambda stream: b"same" if stream in (A, B) else b"else")
    places = {B: EntryId(7, 2), A: EntryId(5, 1), C: EntryId(9, 9)}

    text = format_cursor(places)

    assert parse_cursor(text, [A, B, C]) == places
    # With another set of streams one may be given the other's id, never less than an announced gap.
    assert parse_cursor(text, [B]) == {B: EntryId(5, 1)}
    assert parse_cursor(format_cursor({A: EntryId(5, 1), C: ZERO}), [A, B]) == {A: EntryId(5, 1), B: EntryId(5, 1)}


def test_a_cursor_of_70_kilobytes_is_refused_before_it_is_read() -> None:
    for text in ("9" * 70_000, "c1." + "A" * 70_000, "\u00e4" * 70_000):
        with pytest.raises(InvalidCursor):
            parse_cursor(text, [A])
        with pytest.raises(InvalidCursor):
            parse_resume(text)


def test_a_time_holds_for_all_streams() -> None:
    assert parse_cursor("1763871098000", [A, B]) == {A: Since(1763871098000), B: Since(1763871098000)}
